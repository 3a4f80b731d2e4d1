# SHViT-S1 on ImageNet-1K at 224: 72.8 % top-1 as published (arXiv 2401.16456, README), 6.3 M parameters.
# Total batch 2048: 8 processes x 256. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/shvit/shvit_s1_fused --launcher pytorch
# The authors keep averaged weights and evaluate the plain ones, so none are kept here. The network has no drop path,
# and it was trained without distillation. The interpolation of training images is not given: DeiT's is taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_310e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="shvit_s1_fused")
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")), batch_size=256, repeats=3)
optim_wrapper = dict(optimizer=dict(lr=4e-3, weight_decay=0.025), clip_grad=dict(type="agc", clip_factor=0.02))
auto_scale_lr = dict(base_batch_size=2048)
param_scheduler = [
    dict(type="LinearLR", start_factor=2.5e-4, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=-10, eta_min=1e-5, convert_to_iter_based=True),
]
