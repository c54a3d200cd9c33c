from recsys_ray.encoders.config import TextConfig
from recsys_ray.stages.features import digest_backbones


def test_the_weights_in_a_backbones_folder_count_and_their_place_alone_does_not(tmp_path):
    digests = []
    for place, weights in (("a", "1"), ("b", "1"), ("a", "2")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "model.safetensors").write_text(weights)
        digests.append(digest_backbones([TextConfig(backbone=str(tmp_path / place)), None]))
    assert digests[0] == digests[1] != digests[2]
    assert digest_backbones([TextConfig()]) == ""
