# MaxViT-B on ImageNet-21K at 224: no top-1 is published (arXiv 2204.01697), 135.5 M parameters.
# Total batch 4096: 8 processes x 64 x 8 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_base_tf_224_fused_22k --launcher pytorch \
#     --amp bf16
# How it was trained is not verified: rate and length are usual ones, the rest is as on ImageNet-1K. Its 10,000 steps of
# warm-up are three epochs of about 14 million images.
_base_ = ["maxvit_base_tf_224_fused.py"]
model = dict(model_name="maxvit_base_tf_224_fused.in21k", num_classes=21843)
train_cfg = dict(max_epochs=90)
train_dataloader = dict(dataset=dict(root="data/imagenet22k"))
val_dataloader = dict(dataset=dict(root="data/imagenet22k"))  # images held out of the training's
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, end=3, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=3, eta_min=1e-5, convert_to_iter_based=True),
]
