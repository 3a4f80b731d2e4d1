# L2ViT-B from ImageNet-22K at 384: 87.0 % top-1 as published (arXiv 2501.16182, README), 88.6 M parameters.
# Total batch 1024: 8 processes x 32 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/l2vit/l2vit_base_384_ft --launcher pytorch
# The decay of the averaged weights, augmentation, mixing and erasing are not given: those of the training on
# ImageNet-1K are taken.
_base_ = ["l2vit_base_ft.py"]
model = dict(model_name="l2vit_base_384")
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(accumulative_counts=4)
