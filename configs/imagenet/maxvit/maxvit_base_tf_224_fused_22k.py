# MaxViT-B on ImageNet-21K at 224: no top-1 is published (arXiv 2204.01697), 135.5 M parameters.
# Total batch 4096: 8 processes x 64 x 8 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_base_tf_224_fused_22k --launcher pytorch \
#     --amp bf16
# How it was trained is not verified: rate, decay and length are usual ones, the rest is as on ImageNet-1K.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet22k.py",
    "../../_base_/schedules/imagenet22k_90e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(
    model_name="maxvit_base_tf_224_fused.in21k",
    num_classes=21843,
    drop_path_rate=0.4,
    mixup=dict(cutmix_alpha=0.0),
    erasing=None,
)
train_dataloader = dict(
    dataset=dict(transform=dict(auto_augment="rand-m15-mmax15-n2", interpolation="bicubic")), batch_size=64
)
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.875)))
test_dataloader = val_dataloader
optim_wrapper = dict(clip_grad=dict(max_norm=1.0), accumulative_counts=8)
auto_scale_lr = dict(base_batch_size=4096)
