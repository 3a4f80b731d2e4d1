# Evaluation of a classifier on an ImageNet-style folder; `vertebra test NAME ...` fills in the model.
_base_ = ["../_base_/models/classifier.py", "../_base_/datasets/imagenet.py", "../_base_/runtime/default.py"]
test_cfg = dict(type="TestLoop")
