"""The Ray shell: the only `@serve.deployment`s. Wires pure parts together and holds no logic of its own."""

from __future__ import annotations

from typing import Any, cast

from ray.serve import Application

from serve_app.deployments.classifier import Classifier
from serve_app.deployments.preprocessor import HttpApp, Preprocessor
from serve_app.settings import Settings, classifier_deployment, per_model

__all__ = ["Classifier", "HttpApp", "Preprocessor", "application"]


def application(settings: Settings, http_app: HttpApp) -> Application:
    """The deployments of all models, bound to each other."""
    # mypy sees the classes, not what Serve's decorators made of them.
    preprocessor, classifier = cast(Any, Preprocessor), cast(Any, Classifier)
    classifiers = {
        name: classifier.options(name=classifier_deployment(name)).bind(one, name)
        for name, one in per_model(settings).items()
        if one.placement == "split"
    }
    return preprocessor.bind(settings, http_app, classifiers)
