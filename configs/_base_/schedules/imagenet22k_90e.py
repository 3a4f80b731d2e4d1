# 90 epochs over a data set of many more images than ImageNet-1K; all else as imagenet_300e.
_base_ = ["imagenet_300e.py"]
train_cfg = dict(max_epochs=90)
