package kubernetes

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// A server that does not stream its listings sends each as one message. The library reads and decodes it as a whole: for a moment
// ten thousand Services are there four times, with all that is stripped later. Here it is decoded object by object as it comes in.

// A list in protobuf is a runtime.Unknown behind these bytes. Fields are a key, number<<3 | 2 where bytes follow, and a length.
const (
	protobufMagic = "k8s\x00"
	wireBytes     = 2
	unknownRaw    = 2 // field of the Unknown: the list
	listMeta      = 1 // fields of the list
	listItem      = 2
	longestList   = 1 << 40 // bytes
	longestItem   = 1 << 24 // etcd takes a tenth of that
)

// piece is an object that can be decoded by itself.
type piece[O any] interface {
	*O
	runtime.Object
	Unmarshal(content []byte) error
}

// inPieces returns what lists a resource, keeping of each object what keep makes of it. Whole is the library's way: a server that
// answers otherwise than in protobuf is asked again so, and a client that is no real one only so.
func inPieces[O any, P piece[O], L runtime.Object](
	client rest.Interface, r resource, whole func(context.Context, metav1.ListOptions) (L, error), keep func(any) (any, error),
) func(context.Context, metav1.ListOptions) (runtime.Object, error) {
	return func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		real, is := client.(*rest.RESTClient)
		if !is || real == nil {
			return whole(ctx, options)
		}
		body, err := real.Get().Resource(r.name).VersionedParams(&options, scheme.ParameterCodec).Stream(ctx)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		content := bufio.NewReader(body)
		if magic, err := content.Peek(len(protobufMagic)); err != nil || string(magic) != protobufMagic {
			return whole(ctx, options)
		}
		list, err := decode[O, P](content, keep)
		if err != nil {
			return nil, fmt.Errorf("read the list of %s: %w", r, err)
		}
		return list, nil
	}
}

// decode reads a list from its magic bytes on. It ends where the list does: what follows says how it is encoded.
func decode[O any, P piece[O]](content *bufio.Reader, keep func(any) (any, error)) (runtime.Object, error) {
	if _, err := content.Discard(len(protobufMagic)); err != nil {
		return nil, err
	}
	for {
		number, length, err := nextField(content, longestList)
		if err != nil {
			return nil, whileInside(err)
		}
		if number == unknownRaw {
			return decodeList[O, P](&io.LimitedReader{R: content, N: length}, keep)
		}
		if _, err := io.CopyN(io.Discard, content, length); err != nil {
			return nil, whileInside(err)
		}
	}
}

func decodeList[O any, P piece[O]](whole *io.LimitedReader, keep func(any) (any, error)) (runtime.Object, error) {
	list, content, field := &metainternalversion.List{}, bufio.NewReader(whole), []byte(nil)
	for {
		number, length, err := nextField(content, longestItem)
		switch {
		case errors.Is(err, io.EOF) && whole.N == 0 && list.ResourceVersion != "":
			return list, nil
		case err != nil:
			return nil, whileInside(err)
		}
		field = slices.Grow(field[:0], int(length))[:length] // what is decoded copies what it keeps
		if _, err := io.ReadFull(content, field); err != nil {
			return nil, whileInside(err)
		}
		switch number {
		case listMeta:
			if err := list.ListMeta.Unmarshal(field); err != nil {
				return nil, err
			}
		case listItem:
			object := P(new(O))
			if err := object.Unmarshal(field); err != nil {
				return nil, err
			}
			kept, err := keep(object)
			if err != nil {
				return nil, err
			}
			list.Items = append(list.Items, kept.(runtime.Object))
		}
	}
}

// nextField reads the head of a field whose value is bytes, as all are here. At the end of the message it returns io.EOF.
func nextField(content *bufio.Reader, longest uint64) (number uint64, length int64, err error) {
	key, err := binary.ReadUvarint(content)
	if err != nil {
		return 0, 0, err
	}
	size, err := binary.ReadUvarint(content)
	if err != nil {
		return 0, 0, whileInside(err)
	}
	if key&7 != wireBytes || size > longest {
		return 0, 0, fmt.Errorf("a field of wire type %d with %d bytes is not one of a list", key&7, size)
	}
	return key >> 3, int64(size), nil
}

// whileInside says that an end is one too early.
func whileInside(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
