"The paper's networks under their paper names, at the paper's size."
import pytest, torch
from ols_fastai.train.models import create_model, model_name, paper_names

# of the published network, with a head of 165 classes
weights = {'ResNet-50': 23_508_032+2049*165, 'MobileNetV2': 2_223_872+1281*165, 'VGG-19': 139_570_240+4097*165}

@pytest.mark.parametrize('name', weights)
def test_forward_at_224_pixels(name):
    net = create_model(name, 165).eval()
    assert sum(o.numel() for o in net.parameters())==weights[name]
    with torch.no_grad(): z = net(torch.randn(1, 3, 224, 224))
    assert z.shape==(1,165) and z.isfinite().all()

def test_every_name_of_the_paper_is_known():
    assert set(paper_names)==set(weights)
    assert [model_name(o) for o in paper_names]==list(paper_names.values())
