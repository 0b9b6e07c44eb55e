{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{- define "redoubt.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{- define "redoubt.labels" -}}
app.kubernetes.io/name: redoubt
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "redoubt.select" -}}
app.kubernetes.io/name: redoubt
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The configuration of a member. Its names are filled in by the pod: see redoubt.start. */}}
{{- define "redoubt.config" -}}
{{- $name := include "redoubt.name" .root }}
member:
  id: POD_NAME
  dir: /data
  host: POD_IP
store:
  kind: kubernetes
  listen: 0.0.0.0:7380
  prefix: {{ $name }}
kubernetes:
  namespace: POD_NAMESPACE
  service: {{ $name }}
  {{- if .root.Values.endpoints }}
  endpoints: true
  {{- end }}
deployments:
  - name: {{ .root.Values.deployment }}
    durability: {{ .root.Values.durability }}
    {{- if .root.Values.password.secret }}
    password: POD_PASSWORD
    {{- end }}
    timing: {profile: {{ .root.Values.profile }}}
    {{- $nodes := int .root.Values.nodes }}
    {{- if .root.Values.shards }}
    mode: ring
    shards:
      {{- range $k, $shard := .root.Values.shards }}
      - name: {{ $shard }}
        nodes:
          {{- range $i := until $nodes }}
          - {id: {{ $name }}-{{ $i }}, host: {{ $name }}-{{ $i }}, addr: "{{ $name }}-{{ $i }}.{{ $name }}-nodes.{{ $.root.Release.Namespace }}.svc.{{ $.root.Values.clusterDomain }}:{{ add 6390 $k }}", priority: {{ mod (add $i $nodes (mul -1 (mod $k $nodes))) $nodes }}}
          {{- end }}
      {{- end }}
    {{- else }}
    nodes:
      {{- range $i := until $nodes }}
      - {id: {{ $name }}-{{ $i }}, host: {{ $name }}-{{ $i }}, addr: "{{ $name }}-{{ $i }}.{{ $name }}-nodes.{{ $.root.Release.Namespace }}.svc.{{ $.root.Values.clusterDomain }}:6379"}
      {{- end }}
    {{- end }}
    {{- if .node }}
    {{- if .root.Values.sidecar.enabled }}
    node: {kind: attached, pid-file: /run/redis/redis.pid}
    {{- else }}
    node: {kind: managed, persistence: {{ .root.Values.persistence }}}
    {{- end }}
    {{- end }}
{{- if .root.Values.shards }}
proxy: {listen: "0.0.0.0:6380"}
{{- else }}
proxy: {listen: "0.0.0.0:6380", readonly-listen: "0.0.0.0:6381"}
{{- end }}
sentinel: {listen: "0.0.0.0:26379"}
api: {listen: "0.0.0.0:7379"}
log: {level: info, format: json}
{{- end }}

{{/* The member of a pod of a set: .root, .set (its name), .node (whether it has a server). */}}
{{- define "redoubt.member" -}}
- name: redoubt
  image: {{ .root.Values.image | quote }}
  imagePullPolicy: {{ .root.Values.imagePullPolicy }}
  command: [sh, -ec]
  args:
    - |
      umask 077
      awk 'BEGIN { p = ENVIRON["POD_PASSWORD"]; gsub(/\047/, "\047\047", p) }
        /password: POD_PASSWORD$/ { sub(/POD_PASSWORD$/, ""); print $0 "\047" p "\047"; next }
        { gsub(/POD_NAMESPACE/, ENVIRON["POD_NAMESPACE"]); gsub(/POD_NAME/, ENVIRON["POD_NAME"]); gsub(/POD_IP/, ENVIRON["POD_IP"]); print }' \
        /etc/redoubt/{{ .file }} > /run/redoubt/redoubt.yaml
      exec redoubt run -c /run/redoubt/redoubt.yaml
  env:
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    {{- if .root.Values.password.secret }}
    - {name: POD_PASSWORD, valueFrom: {secretKeyRef: {name: {{ .root.Values.password.secret }}, key: {{ .root.Values.password.key }}}}}
    {{- end }}
  ports:
    {{- if and .node .root.Values.shards }}
    {{- range $k, $shard := .root.Values.shards }}
    - {name: redis-{{ $k }}, containerPort: {{ add 6390 $k }}}
    {{- end }}
    {{- else if and .node (not .root.Values.sidecar.enabled) }}
    - {name: redis, containerPort: 6379}
    {{- end }}
    - {name: proxy, containerPort: 6380}
    {{- if not .root.Values.shards }}
    - {name: readonly, containerPort: 6381}
    {{- end }}
    - {name: sentinel, containerPort: 26379}
    - {name: api, containerPort: 7379}
    - {name: store, containerPort: 7380}
  readinessProbe:
    httpGet: {path: /readyz, port: api}
    periodSeconds: 2
    timeoutSeconds: 2
  lifecycle:
    preStop: # services have to forget the pod first; SIGTERM, which hands the primary over, comes after this
      exec: {command: [sleep, "5"]}
  securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
  volumeMounts:
    - {name: config, mountPath: /etc/redoubt, readOnly: true}
    - {name: run, mountPath: /run/redoubt}
    - {name: data, mountPath: /data}
    {{- if and .node .root.Values.sidecar.enabled }}
    - {name: redis-run, mountPath: /run/redis}
    {{- end }}
  {{- with .resources }}
  resources: {{ toJson . }}
  {{- end }}
{{- end }}

{{- define "redoubt.pod" -}}
serviceAccountName: {{ include "redoubt.name" . }}
securityContext: {runAsNonRoot: true, runAsUser: 999, runAsGroup: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
dnsConfig: {options: [{name: ndots, value: "2"}]} # the data nodes' names are whole: a pod finds its own in its hosts file
{{- end }}
