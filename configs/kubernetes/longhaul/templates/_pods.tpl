{{- define "longhaul.labels" -}}
app.kubernetes.io/name: longhaul
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "longhaul.pod" -}}
{{- $ := index . 0 }}{{ $name := index . 1 }}{{ $pool := index . 2 -}}
{{- /* the launcher, on the head, proves the sandbox backend, and clears up by it */}}
{{- $boxes := ne $name "gpus" -}}
metadata:
  labels:
    {{- include "longhaul.labels" $ | nindent 4 }}
    longhaul.dev/pool: {{ $name }}
spec:
  serviceAccountName: {{ ternary (printf "%s-sandboxes" $.Release.Name) (printf "%s-ray" $.Release.Name) $boxes }}
  automountServiceAccountToken: {{ and $boxes (eq $.Values.sandboxes.backend "kubernetes") }}
  enableServiceLinks: false
  {{- if and $boxes (eq $.Values.sandboxes.backend "namespace") }}
  hostUsers: false
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: {{ $.Values.user }}
    runAsGroup: {{ $.Values.user }}
    fsGroup: {{ $.Values.user }}
  {{- with $.Values.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $pool.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pool.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-{{ $name }}
      image: {{ $.Values.image }}
      {{- if $boxes }}
      env:
        {{- range $word, $field := dict "NAME" "metadata.name" "NAMESPACE" "metadata.namespace" "UID" "metadata.uid" }}
        - name: LONGHAUL_POD_{{ $word }}
          valueFrom:
            fieldRef:
              fieldPath: {{ $field }}
        {{- end }}
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        {{- if and $boxes (eq $.Values.sandboxes.backend "namespace") }}
        procMount: Unmasked
        seccompProfile:
          type: Unconfined
        appArmorProfile:
          type: Unconfined
        {{- else }}
        seccompProfile:
          type: RuntimeDefault
        {{- end }}
      resources:
        {{- range list "limits" "requests" }}
        {{ . }}:
          cpu: {{ $pool.cpu | quote }}
          memory: {{ $pool.memory }}
          {{- if eq $name "gpus" }}
          nvidia.com/gpu: {{ $pool.perPod }}
          {{- end }}
        {{- end }}
      volumeMounts:
        - name: shm
          mountPath: /dev/shm
        {{- if ne $name "sandboxes" }}
        - name: runs
          mountPath: /runs
        {{- end }}
  volumes:
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $pool.sharedMemory | default "8Gi" }}
    {{- if ne $name "sandboxes" }}
    - name: runs
      persistentVolumeClaim:
        claimName: {{ $.Release.Name }}-runs
    {{- end }}
{{- end }}

{{- define "longhaul.cluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
headGroupSpec:
  rayStartParams:
    dashboard-host: "0.0.0.0"
    num-gpus: "0"
  template:
    {{- include "longhaul.pod" (list . "head" .Values.head) | nindent 4 }}
workerGroupSpecs:
  - groupName: gpus
    replicas: {{ .Values.gpus.replicas }}
    minReplicas: {{ .Values.gpus.replicas }}
    maxReplicas: {{ .Values.gpus.replicas }}
    rayStartParams: {}
    template:
      {{- include "longhaul.pod" (list . "gpus" .Values.gpus) | nindent 6 }}
  - groupName: sandboxes
    replicas: {{ .Values.sandboxes.replicas }}
    minReplicas: 0
    maxReplicas: 1000
    labels:
      pool: sandbox
    rayStartParams: {}
    template:
      {{- include "longhaul.pod" (list . "sandboxes" .Values.sandboxes) | nindent 6 }}
{{- end }}

{{- define "longhaul.command" -}}
longhaul run --ray-address "$RAY_ADDRESS" --network.bind 0.0.0.0 --network.trusted --hosts.sandbox-label pool=sandbox
--sandbox.backend {{ .Values.sandboxes.backend }} --run-dir /runs/{{ .Release.Name }}
$(test -e /runs/{{ .Release.Name }}/settings.json && echo --resume auto)
{{- with .Values.storage.url }} --checkpoint.url {{ . | squote }}{{ end }}
{{- range .Values.job.args }} {{ . | toString | squote }}{{ end }}
{{- end }}
