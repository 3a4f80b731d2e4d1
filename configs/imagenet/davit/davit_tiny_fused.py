# DaViT-T on ImageNet-1K at 224: 82.8 % top-1 as published (arXiv 2204.03645, README), 28.4 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/davit/davit_tiny_fused --launcher pytorch --amp fp16
# Its drop path is not given: the default of the authors' code is taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_310e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="davit_tiny_fused", drop_path_rate=0.1)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")))
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.9)))  # the authors'; timm's cfg has 0.95
test_dataloader = val_dataloader
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
