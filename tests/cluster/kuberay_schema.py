"""What KubeRay accepts of a RayService, as far as cluster/rayservice.yaml uses it.

Written from the published API reference of `ray.io/v1` (KubeRay 1.5.1 and newer), not copied from its CRD, which no package
registry carries. Pod templates and Services inside are Kubernetes' own types, see `as_pod`. An unknown key is refused, as
`kubectl apply --validate=strict` refuses it.
"""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
KUBERNETES: Schema = {"type": "object"}
"""A type of Kubernetes itself, checked elsewhere."""


def struct(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


CREDENTIAL = struct(value=STRING, valueFrom=KUBERNETES)

HEAD_GROUP = struct(
    ("rayStartParams", "template"),
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    headService=KUBERNETES,
    enableIngress=BOOLEAN,
    rayStartParams=STRINGS,
    template=KUBERNETES,
)

WORKER_GROUP = struct(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=STRING,
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    numOfHosts=INTEGER,
    idleTimeoutSeconds=INTEGER,
    suspend=BOOLEAN,
    rayStartParams=STRINGS,
    template=KUBERNETES,
)

RAY_CLUSTER = struct(
    ("headGroupSpec",),
    rayVersion=STRING,
    suspend=BOOLEAN,
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=struct(
        version=one_of("v1", "v2"),
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=INTEGER,
        image=STRING,
        imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
        resources=KUBERNETES,
        env={"type": "array"},
        envFrom={"type": "array"},
    ),
    gcsFaultToleranceOptions=struct(
        redisAddress=STRING,
        redisUsername=CREDENTIAL,
        redisPassword=CREDENTIAL,
        externalStorageNamespace=STRING,
    ),
    authOptions=struct(mode=one_of("disabled", "token")),
    headServiceAnnotations=STRINGS,
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)

RAY_SERVICE = struct(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayService"),
    metadata=KUBERNETES,
    spec=struct(
        ("rayClusterConfig",),
        serveConfigV2=STRING,
        rayClusterConfig=RAY_CLUSTER,
        serveService=KUBERNETES,
        excludeHeadPodFromServeSvc=BOOLEAN,
        upgradeStrategy=struct(type=one_of("NewCluster", "None")),
    ),
)


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    """A pod template as the Pod that comes of it, for the schemas of Kubernetes."""
    return {"apiVersion": "v1", "kind": "Pod", **template}
