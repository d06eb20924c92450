{{- define "mirror.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "mirror.fullname" -}}
{{- $name := include "mirror.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "mirror.selector" -}}
app.kubernetes.io/name: {{ include "mirror.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: registry
{{- end }}

{{- define "mirror.nodeSelectorLabels" -}}
app.kubernetes.io/name: {{ include "mirror.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: nodes
{{- end }}

{{- define "mirror.labels" -}}
app.kubernetes.io/name: {{ include "mirror.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "mirror.image" -}}
{{- $image := .Values.image -}}
{{- if not $image.repository -}}
{{- fail "image.repository is not set: build the Dockerfile, push it to a registry that the nodes reach, and name it here" -}}
{{- end -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) }}
{{- end -}}
{{- end }}

{{- define "mirror.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "mirror.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Bytes of a size: a Kubernetes quantity (50Gi, 1T) or a size of the mirror's (45GiB, 900MB, 1048576). */}}
{{- define "mirror.bytes" -}}
{{- $units := dict "" 1 "b" 1 "k" 1000 "kb" 1000 "m" 1000000 "mb" 1000000 "g" 1000000000 "gb" 1000000000 "t" 1000000000000 "tb" 1000000000000 "p" 1000000000000000 "pb" 1000000000000000 "ki" 1024 "kib" 1024 "mi" 1048576 "mib" 1048576 "gi" 1073741824 "gib" 1073741824 "ti" 1099511627776 "tib" 1099511627776 "pi" 1125899906842624 "pib" 1125899906842624 -}}
{{- $text := . | toString -}}
{{- if kindIs "float64" . }}{{ $text = printf "%.0f" . }}{{ end -}}
{{- $unit := regexFind "[A-Za-z]*$" $text | lower -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text -}}
{{- if or (not $number) (not (hasKey $units $unit)) -}}
{{- fail (printf "%q is no size: write 45GiB, 900MB or a whole number of bytes" $text) -}}
{{- end -}}
{{ mulf (float64 $number) (get $units $unit | float64) | printf "%.0f" }}
{{- end }}

{{/* Seconds of a duration such as 500ms, 90s or 1h30m, rounded up. */}}
{{- define "mirror.seconds" -}}
{{- $units := dict "d" 86400.0 "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9]+(\\.[0-9]+)?(ms|[dhms])" (toString .) -1 -}}
{{- $sum = addf $sum (mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[a-z]+$" .))) -}}
{{- end -}}
{{ ceil $sum | int }}
{{- end }}

{{/* Most bytes that the cache may have in its volume. */}}
{{- define "mirror.most" -}}
{{- $size := include "mirror.bytes" .Values.persistence.size | float64 -}}
{{ divf (mulf $size (subf 100.0 (float64 .Values.persistence.headroom))) 100.0 | floor | printf "%.0f" }}
{{- end }}

{{/* Where upstreams' files are, by the upstream's place among all that have one. */}}
{{- define "mirror.upstreamNames" -}}
{{ concat (keys .Values.credentials) (keys .Values.authorities) | uniq | sortAlpha | toJson }}
{{- end }}

{{- define "mirror.secretsPath" -}}/run/secrets/mirror{{- end }}

{{/* The mirror's whole configuration: what was given, and what follows from the rest. */}}
{{- define "mirror.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- range list "listen" "admin_listen" -}}
{{- if hasKey $config . -}}
{{- fail (printf "config.%s is the chart's own: what clients see is service.port, service.nodePort or hostPort.port" .) -}}
{{- end -}}
{{- end -}}
{{- if dig "storage" "path" "" $config -}}
{{- fail "config.storage.path is the chart's own: the volume is where the mirror keeps its cache" -}}
{{- end -}}
{{- $storage := dict "path" "/var/lib/mirror" -}}
{{- $most := include "mirror.most" . -}}
{{- $given := dig "storage" "max_size" "" .Values.config -}}
{{- if $given -}}
{{- if gt (include "mirror.bytes" $given | float64) (float64 $most) -}}
{{- fail (printf "config.storage.max_size is %v, above the %s bytes that persistence.size %s has without its headroom of %v%%: lower it, or ask for a larger volume" $given $most .Values.persistence.size .Values.persistence.headroom) -}}
{{- end -}}
{{- else -}}
{{- $_ := set $storage "max_size" (printf "%sB" $most) -}}
{{- end -}}
{{- $ours := dict "listen" "0.0.0.0:5000" "admin_listen" "0.0.0.0:5001" "drain_delay" "5s" "storage" $storage -}}
{{- if .Values.ingress.enabled -}}
{{- $_ := set $ours "public_url" (printf "https://%s" .Values.ingress.host) -}}
{{- else if .Values.httpRoute.enabled -}}
{{- with .Values.httpRoute.hostnames -}}
{{- $_ := set $ours "public_url" (printf "https://%s" (first .)) -}}
{{- end -}}
{{- end -}}
{{- $secrets := include "mirror.secretsPath" . -}}
{{- if .Values.tls.enabled -}}
{{- $tls := dict "certificate" (printf "%s/tls/tls.crt" $secrets) "key" (printf "%s/tls/tls.key" $secrets) -}}
{{- if .Values.tls.clientCA -}}
{{- $_ := set $tls "client_ca" (printf "%s/tls/ca.crt" $secrets) -}}
{{- end -}}
{{- $_ := set $ours "tls" $tls -}}
{{- end -}}
{{- $upstreams := dict -}}
{{- range $number, $name := include "mirror.upstreamNames" . | fromJsonArray -}}
{{- $files := printf "%s/upstreams/%d" $secrets $number -}}
{{- $upstream := dict -}}
{{- with get $.Values.credentials $name -}}
{{- if eq .type "dockerconfigjson" -}}
{{- $_ := set $upstream "docker_config" (printf "%s/config.json" $files) -}}
{{- else -}}
{{- $_ := set $upstream "password_file" (printf "%s/password" $files) -}}
{{- with .username }}{{ $_ := set $upstream "username" . }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if hasKey $.Values.authorities $name -}}
{{- $_ := set $upstream "ca_file" (printf "%s/ca.crt" $files) -}}
{{- end -}}
{{- $_ := set $upstreams $name $upstream -}}
{{- end -}}
{{- if $upstreams }}{{ $_ := set $ours "upstreams" $upstreams }}{{ end -}}
{{ merge $config $ours | toYaml }}
{{- end }}

{{/* The files that the configuration names, as sources of one projected volume. */}}
{{- define "mirror.secretSources" -}}
{{- range $number, $name := include "mirror.upstreamNames" . | fromJsonArray }}
{{- with get $.Values.credentials $name }}
- secret:
    name: {{ .secret }}
    items:
{{- if eq .type "dockerconfigjson" }}
      - key: .dockerconfigjson
        path: upstreams/{{ $number }}/config.json
{{- else }}
      - key: {{ default "password" .key | quote }}
        path: upstreams/{{ $number }}/password
{{- end }}
{{- end }}
{{- with get $.Values.authorities $name }}
{{- if and .secret .configMap }}
{{- fail (printf "authorities.%s has both secret and configMap; expected one of them" $name) }}
{{- end }}
- {{ ternary "secret" "configMap" (not (empty .secret)) }}:
    name: {{ coalesce .secret .configMap }}
    items:
      - key: {{ default "ca.crt" .key | quote }}
        path: upstreams/{{ $number }}/ca.crt
{{- end }}
{{- end }}
{{- if .Values.tls.enabled }}
- secret:
    name: {{ include "mirror.tlsSecret" . }}
    items:
      - key: tls.crt
        path: tls/tls.crt
      - key: tls.key
        path: tls/tls.key
{{- if .Values.tls.clientCA }}
      - key: ca.crt
        path: tls/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "mirror.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{ .Values.tls.existingSecret }}
{{- else if .Values.tls.certManager.enabled -}}
{{ include "mirror.fullname" . }}-tls
{{- else -}}
{{- fail "tls.enabled needs tls.existingSecret, or tls.certManager.enabled" -}}
{{- end -}}
{{- end }}

{{- define "mirror.scheme" -}}{{ ternary "https" "http" .Values.tls.enabled }}{{- end }}

{{/* Where nodes reach the mirror. */}}
{{- define "mirror.nodesUrl" -}}
{{- $scheme := include "mirror.scheme" . -}}
{{- if .Values.nodes.mirror -}}
{{ .Values.nodes.mirror }}
{{- else if and .Values.enabled .Values.hostPort.enabled -}}
{{ printf "%s://127.0.0.1:%v" $scheme .Values.hostPort.port }}
{{- else if and .Values.enabled (ne .Values.service.type "ClusterIP") .Values.service.nodePort -}}
{{ printf "%s://127.0.0.1:%v" $scheme .Values.service.nodePort }}
{{- else if and .Values.enabled .Values.ingress.enabled -}}
{{ printf "https://%s" .Values.ingress.host }}
{{- else if and .Values.enabled .Values.httpRoute.enabled .Values.httpRoute.hostnames -}}
{{ printf "https://%s" (first .Values.httpRoute.hostnames) }}
{{- else -}}
{{- fail "nodes.mirror is not set: nodes cannot reach a Service of type ClusterIP by name. Give the URL, or set hostPort.enabled, service.nodePort or ingress.enabled" -}}
{{- end -}}
{{- end }}

{{/* Where the mirror's metrics are. */}}
{{- define "mirror.adminUrl" -}}
{{- if .Values.nodes.verify.admin -}}
{{ .Values.nodes.verify.admin }}
{{- else if .Values.enabled -}}
{{ printf "http://%s-admin.%s.svc:5001" (include "mirror.fullname" .) .Release.Namespace }}
{{- else -}}
{{- fail "nodes.verify.admin is not set: the URL of the admin port of a mirror that this release does not have" -}}
{{- end -}}
{{- end }}

{{/* The directory of a node's runtime. */}}
{{- define "mirror.runtimeDirectory" -}}
{{ get (dict "containerd" "/etc/containerd" "crio" "/etc/containers" "k3s" "/etc/rancher/k3s" "rke2" "/etc/rancher/rke2" "docker" "/etc/docker") .Values.nodes.runtime }}
{{- end }}
