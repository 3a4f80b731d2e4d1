# MaxViT-RMLP-B on ImageNet-12K at 224: no top-1 is published (arXiv 2204.01697), 124.5 M parameters.
# Total batch 4096: 8 processes x 64 x 8 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_rmlp_base_rw_224_fused_12k --launcher pytorch
# timm trained it and gives no recipe: a usual one for ImageNet-22K is taken, with clipping. The data folder holds the
# 11,821 classes of ImageNet-22K that are in ImageNet-12K.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet22k.py",
    "../../_base_/schedules/imagenet22k_90e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="maxvit_rmlp_base_rw_224_fused.sw_in12k", num_classes=11821, drop_path_rate=0.4)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0), accumulative_counts=8)
auto_scale_lr = dict(base_batch_size=4096)
