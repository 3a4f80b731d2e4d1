# A timm classifier; every further entry of `model` is an argument of timm.create_model.
model = dict(type="TimmClassifier", model_name="van_b0", num_classes=1000, drop_path_rate=0.0)
