# TransNeXt-Micro on ImageNet-1K at 224: 82.5 % top-1 as published (arXiv 2311.17132, README), 12.8 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/transnext/transnext_micro --launcher pytorch \
#     --amp fp16 --compile
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_300e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="transnext_micro", drop_path_rate=0.15)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")), repeats=3)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
