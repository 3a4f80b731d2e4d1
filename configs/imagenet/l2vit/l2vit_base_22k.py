# L2ViT-B on ImageNet-22K at 224: no top-1 is published (arXiv 2501.16182), 109.9 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/l2vit/l2vit_base_22k --launcher pytorch
# Augmentation, mixing and erasing are not given: those of the training on ImageNet-1K are taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet22k.py",
    "../../_base_/schedules/imagenet22k_90e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="l2vit_base.in22k", num_classes=21841, drop_path_rate=0.2)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")))
