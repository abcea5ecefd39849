"""How many replicas a stage needs: named in a configuration as `serve_app.autoscaling:StagePolicy`, for a deployment,
or `serve_app.autoscaling:PipelinePolicy`, for an application.

`signals` turns what replicas report into plain numbers, `sizing` turns those into a number of replicas, `schedule`
knows the hours; none of them knows Ray. `policies` is what Ray calls.
"""

from serve_app.autoscaling.policies import PipelinePolicy, StagePolicy

__all__ = ["PipelinePolicy", "StagePolicy"]
