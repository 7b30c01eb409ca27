"OLSCallback against the algorithm written out in plain torch."
import pytest, torch, torch.nn.functional as F
from conftest import toy_data, toy_learner, toy_model, weights, K
from fastai.basics import Callback
from ols_fastai.train.ols import OLSCallback

def reference(alpha, epochs, bs=40, lr=.5, K=K):
    "Online label smoothing without fastai: S after each epoch, and the weights at the end"
    model,(x,y),S,history = toy_model(K),toy_data(K=K),torch.full((K,K), 1/K),[]
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        A = torch.zeros(K, K)
        for xb,yb in zip(x.split(bs), y.split(bs)):
            z = model(xb)
            loss = alpha*F.cross_entropy(z, yb) - (1-alpha)*(S[yb]*F.log_softmax(z, 1)).sum(1).mean()
            for p,t in zip(z.detach().softmax(1), yb):
                if p.argmax()==t: A[t] += p
            opt.zero_grad(); loss.backward(); opt.step()
        S = torch.stack([a/a.sum() if a.sum()>0 else torch.full((K,), 1/K) for a in A])
        history.append(S)
    return history, torch.cat([o.detach().flatten() for o in model.parameters()])

@pytest.mark.parametrize('alpha', [0., .5, .9])
def test_same_soft_labels_and_weights_as_plain_torch(alpha):
    history,w = reference(alpha, epochs=3)
    learn,cb = toy_learner(shuffle=False, lr=.5),OLSCallback(alpha)
    seen = []
    class Watch(Callback):
        order = 99
        def after_epoch(self): seen.append(cb.S.clone())
    learn.fit(3, cbs=[cb, Watch()], wd=0.)
    assert len(seen)==3
    for ours,ref in zip(seen, history): torch.testing.assert_close(ours, ref, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights(learn), w, atol=1e-5, rtol=0)
    assert (history[2]-history[0]).abs().max() > 1e-3, 'S has to move for this test to mean anything'
