"""Peer: the naive service. Flask, Pillow, torchvision's transforms, torch eager in fp32, one picture a call.

    ARCH=resnet18 NT=2 python -m flask --app flask_torch run --port 8101
    ARCH=resnet18 NT=1 gunicorn -w 4 --threads 2 -b 127.0.0.1:8102 flask_torch:app

POST /predict, the picture as the body. Weights are random: they cost the same.
"""

import io
import os

import torch
import torchvision
from flask import Flask, Response, jsonify, request
from PIL import Image

torch.set_num_threads(int(os.environ.get("NT", "2")))


def build(architecture: str) -> torch.nn.Module:
    """A model of torchvision, or the one architecture of this project that torchvision lacks."""
    if architecture == "efficientnet_lite0":
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name("efficientnet-lite0")
    return torchvision.models.get_model(architecture, weights=None)


model = build(os.environ.get("ARCH", "resnet18")).eval()
transforms = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
app = Flask(__name__)


@app.post("/predict")
def predict() -> Response:
    picture = transforms(Image.open(io.BytesIO(request.get_data())).convert("RGB"))
    with torch.inference_mode():
        top = model(picture[None]).softmax(1)[0].topk(3)
    answer = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return jsonify([{"class_id": class_id, "score": score} for class_id, score in answer])
