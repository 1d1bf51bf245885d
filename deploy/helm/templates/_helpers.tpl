{{- define "weir.labels" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What tells the pods of this release from others. A DaemonSet cannot change it. */}}
{{- define "weir.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "weir.config" -}}
{{ toYaml .Values.config }}
{{- end }}

{{- /* The port of an address like 0.0.0.0:10256. */}}
{{- define "weir.healthzPort" -}}
{{- .Values.config.healthzBindAddress | default "0.0.0.0:10256" | splitList ":" | last -}}
{{- end }}

{{- /* YAML reads off as false, unless it is in quotes. */}}
{{- define "weir.mode" -}}
{{- if eq (toString .) "false" }}off{{ else }}{{ . }}{{ end -}}
{{- end }}
