# The agent as an image: one static binary. `make image` builds it, with buildah or docker.
FROM scratch
COPY bin/weir /weir
ENTRYPOINT ["/weir"]
