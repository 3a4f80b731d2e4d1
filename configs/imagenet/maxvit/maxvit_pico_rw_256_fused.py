# MaxViT-Pico (rw) on ImageNet-1K at 256: no top-1 is published (arXiv 2204.01697), 7.5 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_pico_rw_256_fused --launcher pytorch
# No weights and no recipe are published: a usual one is taken (like DeiT's, with clipping and averaged weights).
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_300e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="maxvit_pico_rw_256_fused", drop_path_rate=0.1)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1e-4, update_buffers=True)]
