{{/* Labels that select one program of a release. */}}
{{- define "sightline.selector" -}}
app.kubernetes.io/name: sightline
app.kubernetes.io/instance: {{ .release }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "sightline.labels" -}}
{{ include "sightline.selector" (dict "release" .root.Release.Name "component" .component) }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "sightline.image" -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- end }}

{{/* What every container may do: nothing but run. */}}
{{- define "sightline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "sightline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Settings that all programs share. */}}
{{- define "sightline.commonEnv" -}}
- {name: SIGHTLINE_PROFILE, value: production}
- name: SIGHTLINE_REPLICA
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- {name: SIGHTLINE_KAFKA_BOOTSTRAP, value: {{ .Values.kafka.bootstrap | quote }}}
- {name: SIGHTLINE_KAFKA_SECURITY, value: SASL_SSL}
- {name: SIGHTLINE_KAFKA_CA_FILE, value: /etc/sightline/kafka/ca.crt}
- {name: SIGHTLINE_KAFKA_PASSWORD_FILE, value: /etc/sightline/kafka/password}
- name: SIGHTLINE_KAFKA_USERNAME
  valueFrom: {secretKeyRef: {name: {{ .Values.kafka.existingSecret }}, key: username}}
- {name: SIGHTLINE_TELEMETRY_LOG_LEVEL, value: {{ .Values.telemetry.logLevel | quote }}}
{{- with .Values.telemetry.otlpEndpoint }}
- {name: SIGHTLINE_TELEMETRY_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{/* Placement that all programs share: replicas on different nodes where possible. */}}
{{- define "sightline.placement" -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 30
securityContext: {{- include "sightline.podSecurity" .root | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "sightline.selector" (dict "release" .root.Release.Name "component" .component) | nindent 8 }}
{{- end }}

{{- define "sightline.probes" -}}
startupProbe:
  grpc: {port: 8080}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  grpc: {port: 8080}
  periodSeconds: 5
livenessProbe:
  tcpSocket: {port: 8080}
  periodSeconds: 10
  failureThreshold: 6
{{- end }}
