# BiFormer-T on ImageNet-1K at 224: 81.4 % top-1 as published (arXiv 2303.08810, README), 13.1 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/biformer/biformer_tiny --launcher pytorch --amp fp16
# Its drop path is not verified: the default of the authors' code is taken. They track averaged weights (EMA of 0.99996)
# beside the plain ones, which they publish, so none are kept here. Their token labelling is unreleased and left out.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_310e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="biformer_tiny", drop_path_rate=0.1)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")), repeats=3)
