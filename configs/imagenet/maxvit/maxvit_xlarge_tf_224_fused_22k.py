# MaxViT-XL on ImageNet-21K at 224: no top-1 is published (arXiv 2204.01697), 507.0 M parameters.
# Total batch 4096: 8 processes x 16 x 32 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_xlarge_tf_224_fused_22k --launcher pytorch \
#     --amp bf16
# See maxvit_base_tf_224_fused_22k for what is not verified. Its drop path is not given: MaxViT-L's is taken.
_base_ = ["maxvit_base_tf_224_fused_22k.py"]
model = dict(model_name="maxvit_xlarge_tf_224_fused.in21k", drop_path_rate=0.6)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=32)
