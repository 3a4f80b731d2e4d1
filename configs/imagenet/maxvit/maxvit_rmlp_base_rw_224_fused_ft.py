# MaxViT-RMLP-B from ImageNet-12K at 224: its top-1 is not verified (arXiv 2204.01697), 116.1 M parameters.
# Total batch 512: 8 processes x 64. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_rmlp_base_rw_224_fused_ft --launcher pytorch
# timm trained it and gives no recipe: a usual one for fine-tuning is taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_finetune_30e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(
    model_name="maxvit_rmlp_base_rw_224_fused.sw_in12k_ft_in1k",
    weights="maxvit_rmlp_base_rw_224_fused.sw_in12k",
    drop_path_rate=0.4,
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
