# MaxViT-T fine-tuned at 384: 85.24 % top-1 as published (arXiv 2204.01697, README), 31.0 M parameters.
# Total batch 512: 8 processes x 32 x 2 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_tiny_tf_384_fused_ft --launcher pytorch --amp bf16
# Augmentation, clipping and averaging are those of the training at 224.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_finetune_30e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(
    model_name="maxvit_tiny_tf_384_fused.in1k",
    weights="maxvit_tiny_tf_224_fused.in1k",
    drop_path_rate=0.2,
    mixup=dict(cutmix_alpha=0.0),
    erasing=None,
)
train_dataloader = dict(
    dataset=dict(transform=dict(auto_augment="rand-m15-mmax15-n2", interpolation="bicubic")), batch_size=32
)
# what the authors see of an image; timm's cfg squashes it whole
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.923, crop_mode="center")), batch_size=32)
test_dataloader = val_dataloader
optim_wrapper = dict(clip_grad=dict(max_norm=1.0), accumulative_counts=2)
param_scheduler = []
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1e-4, update_buffers=True)]
