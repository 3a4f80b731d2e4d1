# CSWin-L from ImageNet-22K at 384: 87.5 % top-1 as published (arXiv 2107.00652, README), 173.3 M parameters.
# Total batch 512: 8 processes x 16 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/cswin/cswin_large_384_ft --launcher pytorch --amp fp16
# How the authors trained it at 384 is not verified: what they did at 224 is taken.
_base_ = ["cswin_large_ft.py"]
model = dict(model_name="cswin_large_384")
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=4)
