"Pictures and tables of calibration: right numbers in the right places, and clear errors."
import math, os
import cv2, matplotlib, matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, timm, torch
from hypothesis import given, settings, strategies as st
from pathlib import Path
from PIL import Image
from fastai.callback.progress import ProgressCallback
from fastai.basics import Learner, Module, no_random
from torch import Tensor, nn
from ols_fastai.calibration.metrics import *
from ols_fastai.calibration.resampling import *
from ols_fastai.calibration.chance import *
from ols_fastai.train.ols import OLSCallback, RecordSoftLabels
from ols_fastai.calibration.curves import *
from ols_fastai.calibration.pictures import *
from ols_fastai.data.loaders import image_dls
from ols_fastai.calibration.plots import *
from ols_fastai.calibration.one_class import *
from ols_fastai.calibration.features import *
from ols_fastai.calibration.interpretation import *
from ols_fastai.calibration.groups import *
from ols_fastai.calibration.networks import *
from ols_fastai.train.models import create_model
from conftest import toy_learner

K,names = 6,'femur patella meniscus tendon tibia cartilage'.split()

@pytest.fixture(autouse=True)
def closed():
    "No window, and no figure left open"
    matplotlib.use('Agg')
    yield
    plt.close('all')

def random_preds(n=300, K=K, seed=0, sharp=2.):
    g = torch.Generator().manual_seed(seed)
    p = (sharp*torch.randn(n, K, generator=g)).softmax(1)
    return p,torch.multinomial(p, 1, generator=g)[:,0]

def random_S(K=K, seed=0):
    S = torch.rand(K, K, generator=torch.Generator().manual_seed(seed)) + 2*torch.eye(K)
    return S/S.sum(1, keepdim=True)

@pytest.fixture(scope='module')
def image_learner(tmp_path_factory):
    "Three classes of grey images with a column `modality`, and a network that was never trained"
    path,rng = tmp_path_factory.mktemp('images'),np.random.default_rng(0)
    for split,n in (('train',10),('valid',4),('test',11)):
        rows = []
        for i in range(n):
            cv2.imwrite(str(path/f'{split}{i}.png'), rng.integers(0, 256, (20,24), dtype=np.uint8))
            rows.append((f'{split}{i}.png', 'abc'[i%3], ['CT','MR'][i%2], f'{split}-p{i//2}'))
        pd.DataFrame(rows, columns=['filename','label','modality','patient']).to_csv(path/f'{split}.csv', index=False)
    with no_random():
        dls = image_dls(path/'train.csv', path/'valid.csv', path/'test.csv', size=32, bs=4, num_workers=0, device='cpu')
        learn = Learner(dls, create_model('small_cnn', 3))
    learn.remove_cb(ProgressCallback)
    learn.path = path
    return learn

@pytest.fixture
def interp(image_learner): return CalibrationInterpretation.from_learner(image_learner, ds_idx=2)

# ---- the class

def test_arrays_and_learner_agree(interp):
    arrays = CalibrationInterpretation.from_preds(interp.preds.numpy(), interp.targs.tolist(), list('abc'), interp.items)
    pd.testing.assert_frame_equal(arrays.table(n=20), interp.table(n=20))
    pd.testing.assert_frame_equal(arrays.calibration_by('modality'), interp.calibration_by('modality'))
    pd.testing.assert_frame_equal(arrays.top_overconfident(), interp.top_overconfident())
    assert torch.allclose(arrays.losses, interp.losses.double(), atol=1e-5)
    lines = [[o.get_xydata() for o in i.plot_reliability().axes[0].lines] for i in (arrays,interp)]
    for a,b in zip(*lines, strict=True): np.testing.assert_array_equal(a, b)

def test_rows_of_the_table(interp):
    "The paper's row is part of it, intervals of plain means hold their value, and one seed gives one table"
    t = interp.table(n_bins=10, n=100)
    row = summary_metrics(interp.preds, interp.targs, 10)
    assert row.pop('Top-5 error %')==0 and 'Top-5 error %' not in t.index   # of three classes
    np.testing.assert_allclose(t.value[list(row)], list(row.values()), rtol=1e-12)
    for k in ('NLL','Brier','mean confidence'): assert t.low[k]<=t.value[k]<=t.high[k], k
    pd.testing.assert_frame_equal(t, interp.table(n_bins=10, n=100))
    assert not t.equals(interp.table(n_bins=10, n=100, seed=1))
    assert list(interp.table(n=0).columns)==['value']

def test_columns_of_the_list(interp):
    "Tables by a column are those of its rows alone"
    by = interp.table(by='modality', n=0)
    assert list(by.columns)==[('CT','value'),('MR','value')]   # 6 and 5 of 11
    ct = (interp.items.modality=='CT').to_numpy()
    assert by['CT'].value.NLL==pytest.approx(nll(interp.preds[ct], interp.targs[ct]), abs=1e-12)
    assert interp.table(by=ct, n=0)['True'].value.NLL==by['CT'].value.NLL
    predicted = interp.calibration_by()
    assert predicted['count'].to_dict()=={k: n for k,n in zip('abc', interp.preds.argmax(1).bincount(minlength=3).tolist()) if n}
    with pytest.raises(ValueError, match="no column 'body part': it has filename, label, modality, patient, .*and 'predicted'; or give one value per row"): interp.table(by='body part')

def test_items_that_are_no_table(interp):
    "A list kept compactly, a table and a list of files are tables; others have no columns"
    from types import SimpleNamespace as N
    def of(items): return CalibrationInterpretation(None, N(items=items), interp.losses, preds=interp.preds, targs=interp.targs)
    for items in (interp.items, interp.dl.items): assert of(items).table(by='modality', n=0).equals(interp.table(by='modality', n=0))
    assert of([Path(f'{i}.png') for i in range(11)]).items.filename[3]=='3.png'
    assert of(list(range(11))).items is None

def test_given_loader_is_in_the_order_of_its_list(image_learner):
    "A training loader shuffles and drops the last batch; columns must still go with their rows"
    interp = CalibrationInterpretation.from_learner(image_learner, dl=image_learner.dls.train)
    assert len(interp.preds)==len(interp.items)==10
    assert [image_learner.dls.vocab[o] for o in interp.targs]==interp.items.label.tolist()

def test_a_group_of_one_has_no_interval():
    p,t = random_preds(21)
    interp = CalibrationInterpretation.from_preds(p, t, np.array(names), pd.DataFrame(dict(kind=['US']+['CT']*20, patient=['a']*11+['b']*10)))
    by = interp.table(by='kind', n=20)
    assert by['US'].value.NLL==pytest.approx(nll(p[:1], t[:1])) and by['US'][['low','high']].isna().all().all() and by['CT'].low.NLL<by['CT'].high.NLL
    assert interp.table(by='patient', n=20)['a'].low.isna().all()

def test_patients_are_resampled_whole():
    "Twenty copies of each image carry no news: drawn by image they pretend to"
    p,t = (o.repeat_interleave(20, 0) for o in random_preds(30))
    interp = CalibrationInterpretation.from_preds(p, t, items=pd.DataFrame(dict(patient=np.arange(600)//20)))
    width = [(o.high-o.low)['NLL'] for o in (interp.table(n=200, groups=False), interp.table(n=200))]
    assert width[1]>3*width[0]

def test_bad_arrays():
    p,t = random_preds(20)
    make = CalibrationInterpretation.from_preds
    bad = p.clone(); bad[3,1] = float('nan')
    with pytest.raises(ValueError, match='row 3: preds are not finite'): make(bad, t)
    with pytest.raises(ValueError, match='row 0: .*logits'): make(p.log(), t)
    with pytest.raises(ValueError, match='there are 2 class names'): make(p, t, ['a','b'])
    with pytest.raises(ValueError, match='19 items for 20'): make(p, t, items=pd.DataFrame(dict(a=range(19))))
    interp = make(p, t)
    with pytest.raises(ValueError, match="no list to take 'modality' from"): interp.table(by='modality')
    with pytest.raises(ValueError, match='19 groups for 20'): interp.calibration_by(range(19))
    with pytest.raises(ValueError, match='19 patients for 20'): interp.table(groups=range(19))
    for f in (interp.features, interp.plot_tsne, interp.plot_template_plane, lambda: interp[0], lambda: interp.plot_top_losses(2)):
        with pytest.raises(ValueError, match='from_learner'): f()
    with pytest.raises(ValueError, match='train with OLSCallback'): interp.plot_soft_labels()
    with pytest.raises(ValueError, match='give from_preds images'): interp.plot_top_overconfident()

def test_methods_leave_the_functions_alone():
    import ols_fastai.all as m
    for o in ('plot_reliability','plot_reliability_by','plot_risk_coverage','plot_soft_labels','most_similar','calibration_by','top_overconfident','feature_stats','plot_tsne','plot_template_plane'):
        assert callable(getattr(m, o)) and o in m.__all__, o

# ---- reliability and risk

def test_reliability_of_one():
    "Bars, gaps and points at what `consistency_band` says"
    p,t = random_preds()
    fig = plot_reliability({'net': (p,t)}, 10)
    ax,hist = fig.axes
    r = consistency_band(p, t, 10).query('count>0')
    assert len(ax.patches)==len(r)
    np.testing.assert_allclose([(o.get_y(),o.get_y()+o.get_height()) for o in ax.patches], r[['band_low','band_high']])
    gaps = np.concatenate([o.get_segments() for o in ax.collections if isinstance(o, matplotlib.collections.LineCollection)])
    ends = {(round(g[0,0], 9),round(g[0,1], 9),round(g[1,1], 9)) for g in gaps}
    assert ends=={(round(c, 9),round(a, 9),round(c, 9)) for c,a in zip(r.confidence, r.accuracy)}
    labels = [o.get_text() for o in fig.legends[0].get_texts()]
    assert labels[0]=='perfectly calibrated' and labels[1].startswith(f'net: ECE {ece(p, t, n_bins=10):.3f}') and len(labels)==5

def test_over_and_under_confidence_have_their_colours():
    "Certain and always wrong in one bin, unsure and always right in another"
    p = torch.tensor([[.95,.05]]*20+[[.55,.45]]*20)
    fig = plot_reliability({'net': (p, torch.tensor([1]*20+[0]*20))})
    over,under = [o for o in fig.axes[0].collections if isinstance(o, matplotlib.collections.LineCollection)]
    assert [s[0,0] for s in over.get_segments()]==pytest.approx([.95]) and [s[0,0] for s in under.get_segments()]==pytest.approx([.55])
    assert matplotlib.colors.to_rgb(over.get_colors()[0])==matplotlib.colors.to_rgb('tab:red')

def test_reliability_of_several():
    runs = {f'net {i}': random_preds(seed=i) for i in range(3)}
    fig = plot_reliability(runs)
    ax = fig.axes[0]
    assert len(ax.lines)==4 and not ax.patches                        # the diagonal and three; no bars that hide each other
    assert len({o.get_color() for o in ax.lines})==4
    assert [o.get_text().split(':')[0] for o in fig.legends[0].get_texts()]==['perfectly calibrated',*runs]
    assert len(plot_reliability(runs, band=True).axes[0].patches)>10
    with pytest.raises(ValueError, match='runs is empty'): plot_reliability({})
    with pytest.raises(ValueError, match='runs is empty'): plot_risk_coverage({})

def test_few_predictions_are_crosses():
    p = torch.tensor([[.95,.05]]*9+[[.55,.45]]*10)
    line = plot_reliability({'net': (p, torch.zeros(19, dtype=torch.long))}).axes[0].lines[1]
    assert line.get_xdata().tolist()==pytest.approx([.55])

def test_calibration_by():
    "Against sums written out; what has no group is one with a name"
    p,t = random_preds(40)
    groups = np.array(['CT','MR','',None]*10, dtype=object)
    by = calibration_by(p, t, groups)
    assert by['count'].to_dict()=={'CT': 10, 'MR': 10, '(empty)': 20}
    conf = p[0::4].max(1).values.double()
    right = (p[0::4].argmax(1)==t[0::4]).double()
    assert by.columns.tolist()==['count','confidence','accuracy','gap','chance','p','p_holm']
    np.testing.assert_allclose(by.loc['CT'].iloc[:5], [10, conf.mean(), right.mean(), conf.mean()-right.mean(), 1.96*((conf*(1-conf)).sum()**.5)/10], rtol=1e-6)
    beyond = by.gap.abs()-by.chance
    assert (beyond.diff().dropna()<=0).all()

def test_chance_is_what_calibrated_groups_show():
    "Of many calibrated groups, about 95 % lie within"
    p,t = random_preds(40000, seed=5)
    by = calibration_by(p, t, np.arange(40000)//100)
    assert .92<(by.gap.abs()<=by.chance).mean()<.98

@pytest.mark.parametrize('n_groups,n,visible', [(1,12,1),(5,12,5),(9,4,4),(165,12,12)])
def test_grid(n_groups, n, visible):
    "The worst groups in their order, each with its own predictions"
    p,t = random_preds(1000)
    groups = np.array([f'g{i}' for i in range(n_groups)])[np.arange(1000)%n_groups]
    fig = plot_reliability_by(p, t, groups, n)
    axs = [o for o in fig.axes if o.get_visible()]
    by = calibration_by(p, t, groups)
    assert [o.get_title().split(' (')[0] for o in axs]==by.index[:n].tolist() and len(axs)==visible
    mine = groups==by.index[0]
    r = reliability_table(p[mine], t[mine], 10).query('count>0')
    np.testing.assert_allclose(axs[0].lines[-1].get_xydata(), r[['confidence','accuracy']])
    assert ('worst of' in fig.get_suptitle())==(n<n_groups)

def test_grid_has_ticks_below_each_column():
    p,t = random_preds(500)
    fig = plot_reliability_by(p, t, np.arange(500)%7)
    axs = [o for o in fig.axes if o.get_visible()]
    assert [o.get_xlabel() for o in axs]==['']*3+['confidence']*4
    with pytest.raises(ValueError, match='n must be'): plot_reliability_by(p, t, np.arange(500)%7, 0)

def test_risk_coverage():
    p,t = random_preds(5000)
    ax = plot_risk_coverage({'a': (p,t), 'b': random_preds(50, seed=1)}).axes[0]
    line,best = ax.lines[:2]
    assert len(line.get_xdata())==2000 and line.get_xydata()[-1].tolist()==pytest.approx([1, top_k_error(p, t)])
    r = risk_coverage(p, t)
    np.testing.assert_allclose(np.interp(line.get_xdata()[:50], r.coverage, r.risk), line.get_ydata()[:50])
    x = best.get_xdata()
    acc = 1-top_k_error(p, t)
    np.testing.assert_allclose(best.get_ydata(), np.where(x<acc, 0, 1-acc/x), atol=1e-12)
    assert (best.get_ydata()<=line.get_ydata()+1e-12).all()
    assert [o.get_text().split(':')[0] for o in ax.get_legend().get_texts()]==['a','b','the best order there is']

# ---- soft labels

@settings(max_examples=30, deadline=None, derandomize=True)
@given(K=st.integers(2, 30), seed=st.integers(0, 99))
def test_order_is_a_permutation(K, seed): assert sorted(cluster_order(random_S(K, seed)))==list(range(K))

def test_order_brings_similar_ones_together():
    "However little of it the other row knows"
    S = torch.eye(6)
    for i,j in ((5,0),(4,1),(3,2)): S[i,i],S[i,j] = .6,.4
    o = cluster_order(S)
    assert {frozenset(o[i:i+2]) for i in (0,2,4)}=={frozenset(p) for p in ((0,5),(1,4),(2,3))}

def assert_map(ax, S):
    "All of `S` is there, its diagonal without a colour, and the scale ends at what is not the diagonal"
    im,off = ax.images[0],S-np.diag(np.diag(S))
    np.testing.assert_allclose(im.get_array().data, S, rtol=1e-6)
    assert (im.get_array().mask==np.eye(len(S), dtype=bool)).all() and im.norm.vmax>=off.max()

def test_heat_map_shows_the_matrix_in_its_order():
    S,o = random_S(),cluster_order(random_S())
    ax = plot_soft_labels(S, names).axes[0]
    assert_map(ax, S.numpy()[np.ix_(o,o)])
    for labels in (ax.get_xticklabels(),ax.get_yticklabels()): assert [t.get_text() for t in labels]==[names[i] for i in o]

def test_bad_soft_labels():
    S = random_S()
    bad = S.clone(); bad[2,0] = float('nan')
    with pytest.raises(ValueError, match='row 2 of S sums to nan'): plot_soft_labels(bad, names)
    with pytest.raises(ValueError, match=r'S must be \(K,K\)'): cluster_order(S[:3])
    with pytest.raises(ValueError, match='5 class names'): most_similar(S, names[:5])
    with pytest.raises(ValueError, match='2 class names'): plot_soft_epochs([S], names[:2])
    with pytest.raises(ValueError, match='RecordSoftLabels'): plot_soft_epochs({}, names)
    with pytest.raises(ValueError, match='differ in size'): plot_soft_epochs([S, random_S(4)], names)

def test_record_soft_labels():
    "What each epoch learnt, over several fits, and nothing of `validate`"
    learn,record = toy_learner(),RecordSoftLabels()
    ols = OLSCallback(.5)
    learn.fit(2, cbs=[record,ols])
    assert torch.equal(record.matrices[2], learn.soft_labels.S) and not torch.equal(record.matrices[1], record.matrices[2])
    learn.add_cb(record); learn.validate(); learn.get_preds(); learn.remove_cb(record)
    assert list(record.matrices)==[1,2]
    learn.fit(1, cbs=[ols,record])
    assert list(record.matrices)==[1,2,3] and torch.equal(record.matrices[3], learn.soft_labels.S)
    with pytest.raises(ValueError, match='give OLSCallback'): toy_learner().fit(1, cbs=RecordSoftLabels())

@pytest.mark.parametrize('n_epochs,n,shown', [(1,8,[1]),(3,8,[1,2,3]),(20,4,[1,7,14,20])])
def test_epochs(n_epochs, n, shown):
    S = {e: random_S(seed=e) for e in reversed(range(1, n_epochs+1))}
    fig = plot_soft_epochs(S, names, n, n_pairs=3)
    maps = [o for o in fig.axes if o.images]
    assert [int(o.get_title().split()[1].rstrip(':')) for o in maps]==shown
    o = cluster_order(S[n_epochs])
    for ax,e in zip(maps, shown): assert_map(ax, S[e].numpy()[np.ix_(o,o)])
    assert len({(ax.images[0].norm.vmin,ax.images[0].norm.vmax) for ax in maps})==1
    pairs = most_similar(S[n_epochs], names, 3)
    lines = fig.axes[-1].lines
    for line,(_,row) in zip(lines, pairs.iterrows(), strict=True):
        i,j = names.index(row['class']),names.index(row.similar)
        assert line.get_ydata()==pytest.approx([float(S[e][i,j]) for e in range(1, n_epochs+1)])
        assert line.get_label()==f'{names[i]}\n→ {names[j]}'

def test_animation(tmp_path):
    fn = animate_soft_labels([random_S(seed=i) for i in range(3)], tmp_path/'s.gif', dpi=30)
    im = Image.open(fn)
    frames = []
    for i in range(im.n_frames): im.seek(i); frames.append(im.convert('RGB').tobytes())
    assert len(set(frames))==3 and os.listdir(tmp_path)==['s.gif'] and not plt.get_fignums()
    with pytest.raises(FileNotFoundError, match='no folder'): animate_soft_labels([random_S()], tmp_path/'no/s.gif')
    with pytest.raises(ValueError, match=r"\.gif, not '\.mp4'|\.gif, not \.mp4"): animate_soft_labels([random_S()], tmp_path/'s.mp4')

# ---- mistakes

def test_mistakes_in_files_of_one_name_are_told_by_their_folders():
    table = pd.DataFrame(dict(predicted='a', confidence=.9, true='b', p_true=.1, filename=['x/p1/view1.png','x/p2/view1.png','x/p3/other.png']))
    def titles(t): return [ax.get_title().splitlines()[-1] for ax in plot_overconfident([np.zeros((4,4))]*3, t).axes[:3]]
    assert titles(table)==['(p1/view1.png)','(p2/view1.png)','(other.png)']
    assert titles(table.drop(columns='filename'))==['(row 0)','(row 1)','(row 2)']
    plt.close('all')

def test_top_overconfident():
    p,t = random_preds(50)
    m = top_overconfident(p, t, 5, names)
    wrong = (p.argmax(1)!=t).nonzero()[:,0]
    assert m.index.tolist()==sorted(wrong.tolist(), key=lambda i: -p[i].max())[:5]
    for i,row in m.iterrows(): assert (row.predicted,row.true)==(names[p[i].argmax()],names[t[i]]) and row.p_true==pytest.approx(float(p[i,t[i]]))
    assert len(top_overconfident(p, t, 999))==len(wrong) and top_overconfident(p, p.argmax(1)).empty
    with pytest.raises(ValueError, match='2 class names'): top_overconfident(p, t, class_names=['a','b'])

def test_mistakes_are_shown_as_their_files(interp):
    fig,m = interp.plot_top_overconfident(3),interp.top_overconfident(3)
    for ax,(_,row) in zip(fig.axes, m.iterrows()):
        a = cv2.imread(str(interp.learn.path/row.filename), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_allclose(np.asarray(ax.images[0].get_array())*255, a, atol=.5)
        assert ax.get_title()==f'predicted {row.predicted} {row.confidence:.0%}\ntrue {row.true} {row.p_true:.0%}\n({row.filename})'
        assert row.true==interp.items.label[interp.items.filename==row.filename].item()

@pytest.mark.parametrize('make', [lambda a: a, lambda a: torch.as_tensor(a)[None].expand(3, -1, -1), lambda a: Image.fromarray(a), lambda a: np.stack([a]*3, -1)])
def test_images_of_any_kind(make):
    "Arrays, tensors and PIL images, from a list or a function"
    p,t = random_preds(30)
    ims = [np.full((5,7), i, np.uint8) for i in range(30)]
    for images in ([make(o) for o in ims], lambda i: make(ims[i])):
        interp = CalibrationInterpretation.from_preds(p, t, names, images=images)
        fig = interp.plot_top_overconfident(3)
        for ax,i in zip(fig.axes, interp.top_overconfident(3).index):
            a = np.asarray(ax.images[0].get_array())
            assert a.shape[:2]==(5,7) and (a==i).all()

def test_points_are_no_images():
    learn = toy_learner()
    with pytest.raises(ValueError, match='no image but Tensor of shape'): CalibrationInterpretation.from_learner(learn).plot_top_overconfident()
    with pytest.raises(ValueError, match='no mistake'): plot_overconfident([], top_overconfident(torch.eye(3), torch.arange(3)))

# ---- features

@pytest.mark.parametrize('arch', ['small_cnn','test_resnet','test_vit','test_efficientnet'])
def test_features_make_the_predictions(image_learner, arch):
    "The last layer of the features is the network's prediction, in the order of the list, and no hook stays behind"
    learn = Learner(image_learner.dls, timm.create_model(arch, num_classes=3, img_size=32) if arch=='test_vit' else create_model(arch, 3))
    learn.remove_cb(ProgressCallback)
    dl = learn.dls.train   # shuffled, and its last two are dropped
    x,y,head = penultimate_features(learn, dl=dl)
    preds,targs = learn.get_preds(dl=dl.new(shuffle=False, drop_last=False))
    with torch.no_grad(): torch.testing.assert_close(head(x).softmax(1), preds.as_subclass(Tensor), atol=1e-5, rtol=1e-4)
    assert torch.equal(y, targs.as_subclass(Tensor)) and not head._forward_hooks
    assert [learn.dls.vocab[o] for o in y]==dl.items.frame().label.tolist()

def test_networks_without_such_a_layer():
    class Twice(Module):
        def __init__(self): self.l = nn.Linear(2, K)
        def forward(self, x): return self.l(x)+self.l(x)
    for model,what in ((nn.Sequential(nn.Unflatten(1, (2,1)), nn.Conv1d(2, K, 1), nn.Flatten()),'no nn.Linear'), (Twice(),'does not make its 6'),
                       (nn.Sequential(nn.Linear(2, 3), nn.Unflatten(1, (3,1)), nn.Conv1d(3, K, 1), nn.Flatten()),'3\\) does not make its 6')):
        with pytest.raises(ValueError, match=what): penultimate_features(toy_learner(model=model))

def clouds(n=(7,5,9,1), D=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(n)), n)
    return rng.normal(size=(len(n),D))[y]*2+rng.normal(size=(len(y),D)), y

@pytest.mark.parametrize('D', [2,4,40])
def test_feature_stats_against_the_written_out(D):
    "Papyan's Eq. for NC1 with the D x D matrices, and silhouettes by loops"
    x,y = clouds(D=D)
    means = np.stack([x[y==k].mean(0) for k in range(4)])
    W = sum(np.outer(o-means[k], o-means[k]) for o,k in zip(x, y))/len(x)
    B = sum(np.outer(m-means.mean(0), m-means.mean(0)) for m in means)/4
    s = []
    for i in range(len(x)):
        d = np.linalg.norm(x-x[i], axis=1)
        mine = (y==y[i])&(np.arange(len(x))!=i)
        if not mine.any(): s.append(0); continue
        a,b = d[mine].mean(),min(d[y==k].mean() for k in range(4) if k!=y[i])
        s.append((b-a)/max(a, b))
    got = feature_stats(x, y)
    assert got['NC1']==pytest.approx(np.trace(W@np.linalg.pinv(B, rcond=1e-10))/4, rel=1e-6)
    assert got['silhouette']==pytest.approx(np.mean(s))
    inter = np.mean([np.linalg.norm(means[i]-means[j]) for i in range(4) for j in range(i)])
    assert got['intra/inter']==pytest.approx(np.mean(np.linalg.norm(x-means[y], axis=1))/inter)

def test_feature_stats_collapse_and_errors():
    x,y = clouds()
    tight = feature_stats(np.eye(4)[y]+1e-6*x, y)
    assert tight['NC1']<1e-9 and tight['intra/inter']<1e-4 and tight['silhouette']>.9
    bad = x.copy(); bad[4,0] = np.inf
    with pytest.raises(ValueError, match='row 4 of the features'): feature_stats(bad, y)
    with pytest.raises(ValueError, match='at least 2 classes'): feature_stats(x, np.zeros(len(x), int))
    with pytest.raises(ValueError, match='do not go together'): feature_stats(x, y[:3])
    with pytest.raises(ValueError, match='same mean'): feature_stats(np.ones((4,2)), [0,0,1,1])

def test_template_plane():
    "Templates keep their distances, the first is the origin, the second lies on the first axis, the third above it"
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).numpy().astype(float)
    origin,axes = template_plane(w, [3,0,4])
    z = (w[[3,0,4]]-origin)@axes.T
    np.testing.assert_allclose(axes@axes.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(z[0], 0, atol=1e-12)
    np.testing.assert_allclose(z[1], [np.linalg.norm(w[0]-w[3]), 0], atol=1e-12)
    assert z[2,1]>0 and np.linalg.norm(z[2]-z[1])==pytest.approx(np.linalg.norm(w[4]-w[0]))
    for bad,what in (([0,1],'three different'),([0,1,5],'0..4'),([0,0,1],'three different')):
        with pytest.raises(ValueError, match=what): template_plane(w, bad)
    with pytest.raises(ValueError, match='on a line'): template_plane(np.outer([1,2,3.], np.ones(4)), [0,1,2])

def test_shades_are_the_decisions_of_the_network():
    "A point lies on the shade of the class of the three with the largest logit"
    g = torch.Generator().manual_seed(1)
    w,b = torch.randn(K, 5, generator=g),torch.randn(K, generator=g)
    x = 2*torch.randn(200, 5, generator=g)
    y,three = torch.randint(0, K, (200,), generator=g),[4,1,2]
    ax = plot_template_plane(x, y, w, three, names, b).axes[0]
    shade = ax.collections[0].get_paths()
    points = [o for o in ax.collections if isinstance(o, matplotlib.collections.PathCollection)]
    assert len(points)==7                                             # three clouds, three stars, the key to them
    n = 0
    for cloud,k in zip(points[0:6:2], three):
        np.testing.assert_allclose(cloud.get_offsets(), (x[y==k].numpy()-template_plane(w, three)[0])@template_plane(w, three)[1].T, rtol=1e-4, atol=1e-4)
        for place,xi in zip(cloud.get_offsets(), x[y==k]):
            z = (w[three]@xi+b[three]).sort(descending=True)
            if z.values[0]-z.values[1]<.3: continue                   # on a border of the drawn grid
            assert [bool(o.contains_point(place)) for o in shade]==[i==z.indices[0] for i in range(3)]
            n += 1
    assert n>50
    assert f'towards {names[1]}' in ax.get_xlabel()

def test_classes_of_the_plane(interp):
    "The names that are asked for, or the two most confused and the one least like them"
    assert 'towards a' in interp.plot_template_plane(['c','a','b']).axes[0].get_xlabel()
    with pytest.raises(ValueError, match="no class 'd'"): interp.plot_template_plane(['a','b','d'])
    p = torch.tensor([[.5,.05,.4,.05],[.1,.8,.05,.05],[.4,.05,.5,.05],[.1,.1,.1,.7]])
    assert three_classes(p, torch.arange(4))==[0,2,1]   # of the others, 1 shares .25 with them and 3 shares .30
    with pytest.raises(ValueError, match='there are 2'): three_classes(torch.tensor([[.5,.5]]), torch.tensor([0]))

def test_tsne():
    x,y = clouds((20,20,20,20), D=6)
    fig = plot_tsne(x, y, names[:4], n=50, n_named=3)
    ax = fig.axes[0]
    rest,*named = ax.collections
    assert sum(len(o.get_offsets()) for o in ax.collections)==50 and len(named)==3 and rest.get_label()=='the other 1 classes'
    s = [float(o.get_label().split()[-1]) for o in named]
    assert s==sorted(s)
    assert f"NC1 {feature_stats(x, y)['NC1']:.2f}" in ax.get_title()
    again = plot_tsne(x, y, names[:4], n=50, n_named=3).axes[0].collections[1]
    np.testing.assert_array_equal(again.get_offsets(), named[0].get_offsets())
    with pytest.raises(ValueError, match='class 3 has no name'): plot_tsne(x, y, names[:3])
    with pytest.raises(ValueError, match='at least 5'): plot_tsne(x[18:22], y[18:22], names)

def test_features_are_kept(interp, monkeypatch):
    first = interp.features()
    monkeypatch.setattr(interp.learn, 'get_preds', lambda *a, **k: pytest.fail('predicted again'))
    assert interp.features() is first and interp.feature_stats().keys()=={'silhouette','intra/inter','NC1'}

# ---- comparison

def two(): return {k: CalibrationInterpretation.from_preds(*random_preds()) for k in ('one','two')}

def test_comparison_with_itself_is_nought():
    c = compare_calibration(two(), n=20)
    d = c['two minus one']
    assert (d.fillna(0)==0).all().all() and list(dict.fromkeys(c.columns.get_level_values(0)))==['one','two','two minus one']
    pd.testing.assert_frame_equal(c['one'], two()['one'].table(n=20))

def test_comparison_is_paired():
    "The same network but for a little: the difference is known far better than either value"
    p,t = random_preds(400)
    a,b = (CalibrationInterpretation.from_preds(o, t) for o in (p, (p*.98+.02/K)))
    c = compare_calibration({'a': a, 'b': b}, n=100)
    width = c.xs('high', axis=1, level=1).loc['NLL']-c.xs('low', axis=1, level=1).loc['NLL']
    assert width['b minus a']<.2*width['a']
    assert c['b minus a'].value['NLL']==pytest.approx(nll(b.preds, t)-nll(p, t))

def test_comparison_needs_the_same_samples():
    one = two()['one']
    other = CalibrationInterpretation.from_preds(*random_preds(seed=3))
    with pytest.raises(ValueError, match='other and one were not judged on the same'): compare_calibration({'one': one, 'other': other})
    with pytest.raises(ValueError, match='at least 2'): compare_calibration({'one': one})

def test_page_of_comparison():
    "Each network on each panel, and a row a measure with its interval"
    p,t = random_preds()
    interps = {f'net {i}': CalibrationInterpretation.from_preds(random_preds(seed=i)[0], t) for i in range(3)}
    c = compare_calibration(interps, n=20)
    fig = plot_comparison(interps, c)
    rel,hist,risk,wrong,diff = fig.axes
    assert len(rel.lines)==4 and len(risk.lines)==6 and len(hist.patches)==len(wrong.patches)==3
    rows = [o.get_text() for o in diff.get_yticklabels()]
    assert rows[0]=='Top-1 error' and 'ECE (15 bins)' in rows and len(rows)==8 and not any(o.startswith('class-wise') for o in rows)  # it has no interval
    base = c['net 0'].value
    for dots,name in zip(diff.lines, ('net 1','net 2')):
        assert dots.get_xdata()[rows.index('NLL')]==pytest.approx(c[f'{name} minus net 0'].value['NLL']/base['NLL'])
    assert [o.get_text() for o in fig.legends[0].get_texts()]==list(interps)
    s = interps['net 0'].stats
    assert wrong.patches[0].get_data().values.sum()==(~s.correct).sum()

def test_one_sample_and_two_classes():
    "The least there is to show"
    p,t = torch.tensor([[.3,.7]]),torch.tensor([0])
    interp = CalibrationInterpretation.from_preds(p, t)
    assert interp.table(n=0).value['Top-1 error %']==100 and interp.top_overconfident().predicted.tolist()==['1']
    assert interp.plot_reliability().axes[0].lines[1].get_xdata().size==0    # a cross, no line
    assert interp.plot_reliability_by().axes[0].get_title()=='1 (n = 1)\nconf. 70%, acc. 0%'
    assert interp.plot_risk_coverage().axes[0].lines[0].get_xydata().tolist()==[[1,1]]

def test_nothing_to_better():
    t = torch.arange(K).repeat(5)
    interps = {'perfect': CalibrationInterpretation.from_preds(torch.eye(K)[t], t), 'other': CalibrationInterpretation.from_preds(random_preds(30)[0], t)}
    assert 'perfect has no errors to compare' in plot_comparison(interps, compare_calibration(interps, n=5)).axes[-1].get_title()


def test_a_network_is_not_judged_on_the_images_that_calibrated_it(image_learner):
    from ols_fastai.calibration.scaling import calibrate, uncalibrate
    with image_learner.no_bar(), image_learner.no_logging(): calibrate(image_learner, ds_idx=1)
    try:
        with pytest.raises(ValueError, match='4 of its|12 of its'): CalibrationInterpretation.from_learner(image_learner, ds_idx=1)
        CalibrationInterpretation.from_learner(image_learner, ds_idx=2)
    finally: uncalibrate(image_learner)

def test_what_resampling_would_bias_has_no_interval():
    t = calibration_table(*random_preds(), n=20)
    assert t.index[t.low.isna()].tolist()==['Brier, calibration (15 bins)','Brier, refinement (15 bins)','class-wise ECE (15 bins)']
    assert t.value.notna().all() and (t.low<=t.value)[t.low.notna()].all()

# ---- what judges, and what it may not say

def perfect(n=60, copies=10, K=4, seed=0, spread=.7):
    "A network calibrated by construction; `n` patients of `copies` similar images each"
    r = np.random.default_rng(seed)
    p = r.dirichlet([spread]*K, n)
    y = np.array([r.choice(K, p=o) for o in p])
    return tuple(torch.tensor(o.repeat(copies, 0)) for o in (p, y, np.arange(n)))

@pytest.mark.parametrize('name', [lambda y: y, lambda y: y.astype(str), lambda y: np.array(list('abcd'))[y], lambda y: 3-y, lambda y: y.astype(float)])
def test_the_true_class_is_no_group(name):
    "Under whatever name it comes; as a column and as an array, in the function and in each method"
    p,t,_ = perfect(300, 1)
    by = name(t.numpy())
    with pytest.raises(ValueError, match="true classes.*by='predicted'"): calibration_by(p, t, by)
    with pytest.raises(ValueError, match="by='predicted'"): plot_reliability_by(p, t, by)
    interp = CalibrationInterpretation.from_preds(p, t, list('abcd'), pd.DataFrame(dict(label=by)))
    for f in (interp.table, interp.calibration_by, interp.plot_reliability_by):
        for o in ('label', by):
            with pytest.raises(ValueError, match="by='predicted'"): f(by=o)

def test_what_is_no_true_class_is_a_group():
    "The predicted class, also of a network without a mistake; one that knows each class but for one image; one group"
    p,t,_ = perfect(300, 1)
    assert len(calibration_by(p, t, p.argmax(1)))==4
    sure = torch.eye(4)[t]
    assert len(calibration_by(sure, t, sure.argmax(1)))==4 and (calibration_by(sure, t, t).gap==0).all()
    other = t.clone(); other[0] = (t[0]+1)%4
    assert len(calibration_by(p, t, other))==4
    assert len(calibration_by(p[t==1], t[t==1], ['CT']*int((t==1).sum())))==1

def test_gaps_by_patient():
    "Far fewer false alarms than with images"
    p,t,who = perfect(30, 3, seed=1)
    by = np.where(np.arange(90)%2, 'CT', 'MR')
    table = calibration_by(p, t, by, groups=who)
    d = (p.max(1).values-(p.argmax(1)==t).double()).numpy()
    error = null_errors_by(d, (p.max(1).values*(1-p.max(1).values)).numpy(), (by=='MR').astype(int), who)
    for k,e in zip(('CT','MR'), error):
        n = (by==k).sum()
        assert table.chance[k]==pytest.approx(1.96*e/n) and table.p[k]==pytest.approx(math.erfc(abs(d[by==k].sum()/e)/2**.5))
    assert table.patients.tolist()==[30,30] and (table.p_holm>=table.p).all()
    alarms = {None: [], 'who': []}
    for seed in range(60):
        p,t,who = perfect(seed=seed)
        for k in alarms: alarms[k] += (lambda o: (o.gap.abs()>o.chance).tolist())(calibration_by(p, t, p.argmax(1), k and who))
    assert np.mean(alarms[None])>.4 and np.mean(alarms['who'])<.08

def test_a_column_of_patients_is_used_by_itself():
    p,t,who = perfect(seed=2)
    items = pd.DataFrame(dict(patient=who.numpy()))
    with_patients,without = (CalibrationInterpretation.from_preds(p, t, items=o) for o in (items, None))
    assert with_patients.table(n=50).equals(without.table(n=50, groups=who))
    assert with_patients.table(n=50, groups=False).equals(without.table(n=50))
    assert with_patients.calibration_by().equals(without.calibration_by(groups=who.numpy()))
    bars = [[o.get_height() for o in i.plot_reliability(10, groups=g).axes[0].patches] for i,g in ((with_patients,None), (without,who), (without,None))]
    assert bars[0]==bars[1] and np.mean(bars[0])>1.5*np.mean(bars[2])
    a,b = (CalibrationInterpretation.from_preds(p**k/(p**k).sum(1, keepdim=True), t, items=items) for k in (1, 1.2))
    by_patient,by_image = (compare_calibration({'a': a, 'b': b}, n=50, groups=o)['b minus a'] for o in (None, False))
    assert (by_patient.high-by_patient.low)['NLL']>1.5*(by_image.high-by_image.low)['NLL']

def test_bars_by_patient_hold_calibrated_networks():
    "About 95 % of the bins, where bars by image hold half"
    held = {None: [], 'who': []}
    for seed in range(40):
        p,t,who = perfect(100, 10, seed=seed)
        for k in held:
            fig = plot_reliability({'net': (p,t)}, 5, groups=k and who)
            bars = [(o.get_y(), o.get_y()+o.get_height()) for o in fig.axes[0].patches]
            r = reliability_table(p, t, 5).query('count>0')
            held[k] += [low-1e-9<=a<=high+1e-9 for (low,high),a in zip(bars, r.accuracy, strict=True)]
            plt.close(fig)
    assert np.mean(held[None])<.7 and .9<np.mean(held['who'])

def test_patients_of_one_spelling_and_of_none():
    "7, '7' and 7.0 are one patient; empty cells are as many patients as there are"
    p,t = random_preds(60)
    spelled = [[7,'7',7.,' 7 ','8',8][i%6] for i in range(60)]
    interp = CalibrationInterpretation.from_preds(p, t, items=pd.DataFrame(dict(patient=pd.Series(spelled, dtype=object))))
    assert interp.calibration_by(by=['all']*60).patients.tolist()==[2]
    empty = pd.Series(['a']*10+['',None,float('nan'),' ','b']*10, dtype=object)
    with pytest.warns(UserWarning, match='40 of 60 samples have no group'): by = calibration_by(p, t, ['all']*60, groups=empty)
    assert by.patients.tolist()==[42]

def test_the_state_is_that_of_the_time(image_learner):
    "An interpretation made before calibration says so afterwards, and one of soft labels keeps them"
    from ols_fastai.calibration.scaling import calibrate, uncalibrate
    before = CalibrationInterpretation.from_learner(image_learner, ds_idx=2)
    assert before.valid_preds()[0].shape==(4,3)
    with image_learner.no_bar(), image_learner.no_logging(): calibrate(image_learner, ds_idx=1)
    try:
        after = CalibrationInterpretation.from_learner(image_learner, ds_idx=2)
        assert before.settings['calibrated']=='no' and before.settings['network']==after.settings['network']
        assert after.settings['calibrated'].startswith('one temperature') and after.settings['calibrated'].endswith('fitted to 4 images')
        assert after.valid_preds() is None
        with pytest.raises(ValueError, match='after it was judged'): before.valid_preds()
    finally: uncalibrate(image_learner)
    assert CalibrationInterpretation.from_learner(image_learner, ds_idx=1).valid_preds() is None   # it was judged
    learn = toy_learner()
    learn.fit(1, .1, cbs=OLSCallback())
    interp = CalibrationInterpretation.from_learner(learn)
    S = learn.soft_labels.S.clone()
    learn.fit(1, .1, cbs=OLSCallback())
    assert torch.equal(interp.soft_labels, S) and not torch.equal(learn.soft_labels.S, S)
    with pytest.raises(ValueError, match='60 of its|of its 60'):
        calibrate(learn); CalibrationInterpretation(learn, learn.dls.valid, None, preds=interp.preds, targs=interp.targs)

def test_intervals_stay_within_the_range():
    "A network that is nearly perfect, one that is nearly always wrong, and one that has collapsed"
    t = torch.arange(200)%4
    good = torch.eye(4)[t]*.996+.001; bad = torch.eye(4)[(t+1)%4]*.996+.001
    good[0],bad[0] = bad[0].clone(),good[0].clone()
    for p in (good, bad, torch.full((200,4), .25), torch.eye(4)[t]):
        table = CalibrationInterpretation.from_preds(p, t).table(n=100)
        for name,o in table.iterrows():
            low,high = (-100,100) if 'points' in name else (0,100) if '%' in name else (0,np.inf) if name=='NLL' else (0,2) if 'Brier' in name else (0,1)
            assert not (o[['value','low','high']]<low).any() and not (o[['value','low','high']]>high+1e-12).any(), (name, o.tolist())

def test_five_classes_have_no_top_5_error():
    for K,has in ((5,False),(6,True)):
        p,t = random_preds(50, K)
        assert ('Top-5 error %' in calibration_table(p, t, n=5).index)==has
        both = {k: CalibrationInterpretation.from_preds(p, t) for k in 'ab'}
        c = compare_calibration(both, n=5)
        assert ('Top-5 error %' in c.index)==has
        plot_comparison(both, c)

def test_fastais_own_views(capsys):
    "They come from `ClassificationInterpretation`, and need no learner here"
    p,t = random_preds(90)
    interp = CalibrationInterpretation.from_preds(p, t, names)
    from sklearn.metrics import confusion_matrix, recall_score
    np.testing.assert_array_equal(interp.confusion_matrix(), confusion_matrix(t, p.argmax(1), labels=range(K)))
    a,b,n = interp.most_confused()[0]
    off = interp.confusion_matrix()-np.diag(np.diag(interp.confusion_matrix()))
    assert n==off.max()==off[names.index(a),names.index(b)]
    interp.print_classification_report()
    said = capsys.readouterr().out
    assert all(o in said for o in names) and f'{recall_score(t, p.argmax(1), average=None)[1]:.2f}' in said
    interp.plot_confusion_matrix()
    assert [o.get_text() for o in plt.gcf().axes[0].get_xticklabels()]==names

def test_fastais_own_views_of_a_learner(interp):
    assert interp.confusion_matrix().sum()==11 and interp.most_confused() and len(interp.top_losses(2)[0])==2

def test_names_that_are_no_utf8():
    "Folder and file names may hold any byte; Python keeps them as lone surrogates, which nothing can draw"
    odd = b'scan\xff'.decode('utf-8', 'surrogateescape')
    p,t = random_preds(60)
    interp = CalibrationInterpretation.from_preds(p, t, [odd,*names[1:]], pd.DataFrame(dict(filename=[odd+'.png']*60, site=[odd,'b']*30), dtype=object),
                                                  images=[np.zeros((4,4))]*60)
    for fig in (interp.plot_reliability_by('site'), interp.plot_top_overconfident(3), interp.plot_soft_labels(random_S()), interp.plot_reliability(**{odd: interp}),
                plot_comparison({odd: interp, 'b': interp}, compare_calibration({odd: interp, 'b': interp}, n=5))): fig.canvas.draw()

def test_images_that_can_not_be_read_any_more(tmp_path):
    p,t = random_preds(30)
    def read(i):
        if i%2: raise FileNotFoundError(f'no file {i}.png')
        return np.full((5,7), i, np.uint8)
    interp = CalibrationInterpretation.from_preds(p, t, images=read)
    fig,rows = interp.plot_top_overconfident(6),interp.top_overconfident(6).index
    for ax,i in zip(fig.axes, rows):
        assert bool(ax.images)==(i%2==0) and any('no file' in o.get_text() for o in ax.texts)==bool(i%2)

def test_soft_labels_of_few_and_of_many_classes():
    "Few have their numbers; of many those are shown that share the most"
    S = random_S(4)
    fig = plot_soft_labels(S, names[:4])
    o = cluster_order(S)
    assert [float(x.get_text()) for x in fig.axes[0].texts]==pytest.approx(S.numpy()[np.ix_(o,o)].ravel(), abs=.006)
    for strong,weak in (((7,31),(12,50)), ((12,50),(7,31))):   # wherever the clustering puts them
        S = .9*torch.eye(60)+.1/60
        for (i,j),share in ((strong,.4), (weak,.3)):
            S[i] = 0
            S[i,i],S[i,j] = 1-share,share
        ax = plot_soft_labels(S, [f'class {i}' for i in range(60)], n=2).axes[0]
        assert sorted(o.get_text() for o in ax.get_xticklabels())==sorted(f'class {i}' for i in strong)
    assert len(plot_soft_labels(S, range(60)).axes[0].texts)==12+2      # what is rounded to 0 is not written
    assert not plot_soft_labels(S, range(60), n=13).axes[0].texts
    assert len(plot_soft_labels(S, range(60), n=None).axes[0].get_xticklabels())==60

def test_the_plane_of_classes_that_have_images():
    "A class without images is none of the three, whatever is predicted for it"
    p = torch.tensor([[.5,.05,.4,.05],[.4,.05,.5,.05],[.1,.1,.1,.7]])
    assert three_classes(p, torch.tensor([0,2,3]))==[0,2,3]        # class 1 has no image
    p = torch.tensor([[.1,.6,.2,.1],[.1,.6,.1,.2],[.2,.6,.1,.1]])   # all are taken for class 1, which is not there
    assert 1 not in three_classes(p, torch.tensor([0,2,3]))
    with pytest.raises(ValueError, match='images of 2'): three_classes(p[:2], torch.tensor([0,2]))

def test_the_count_panel_says_its_scale():
    assert 'log scale' in plot_reliability({'net': random_preds()}).axes[1].get_ylabel()

@pytest.mark.parametrize('k', [0,3,5])
def test_one_class(k):
    "Curves and counts are those of the functions, for a class that is first, in the middle and last; by patient too"
    from sklearn.metrics import average_precision_score, roc_auc_score
    from ols_fastai.calibration.curves import net_benefit
    p,t = random_preds(400)
    who = np.arange(400)//4
    interp = CalibrationInterpretation.from_preds(p, t, names, pd.DataFrame(dict(patient=who)))
    fig = interp.plot_class(names[k])
    curve,by_outcome,decision,roc,pr,_ = fig.axes
    want = corp(p, t, k, groups=who)
    line = next(o for o in curve.lines if len(o.get_xdata())==len(want))
    np.testing.assert_allclose(line.get_xydata(), want[['probability','frequency']])
    n = int((t==k).sum())
    assert [o.get_text() for o in by_outcome.get_legend().get_texts()]==[f'{names[k]} (n = {n})', f'not {names[k]} (n = {400-n})']
    np.testing.assert_allclose(decision.lines[0].get_ydata(), net_benefit(p, t, k)['net benefit'])
    area = roc_auc_score(t==k, p[:,k])
    assert roc.get_title()==f'ROC, area {area:.3f}' and np.trapezoid(roc.lines[0].get_ydata(), roc.lines[0].get_xdata())==pytest.approx(area)
    assert pr.get_title()==f'Precision-recall, area {average_precision_score(t==k, p[:,k]):.3f}' and pr.lines[1].get_ydata()[0]==pytest.approx(n/400)
    assert fig.get_suptitle()==f'{names[k]}: {n} of 400 images'
    table = interp.class_table()
    assert table.n[names[k]]==n and table.sensitivity[names[k]]==pytest.approx(float((p[t==k].argmax(1)==k).double().mean()))
    with pytest.raises(ValueError, match="no class 'femu': did you mean femur"): interp.plot_class('femu')

def test_findings_that_may_occur_together():
    "A multi-label network's finding, and a yes-or-no output"
    g = torch.Generator().manual_seed(0)
    p = torch.rand(300, 14, generator=g)
    y = (torch.rand(300, 14, generator=g)<p).long()
    fig = plot_class(p, y, 5, 'effusion')
    assert fig.get_suptitle()==f'effusion: {int(y[:,5].sum())} of 300 images'
    assert plot_class(p[:,0], y[:,0], 0).get_suptitle().startswith('0: ')

def test_one_answer_of_each_patient_is_the_mean_of_his_images():
    preds,targs = random_preds(60)
    patient = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 3))
    targs = torch.from_numpy(np.random.default_rng(1).integers(0, K, 20))[patient]
    items = pd.DataFrame(dict(patient=[f'p{o}' for o in patient], site='x'))
    one = CalibrationInterpretation.from_preds(preds, targs, items=items).per_patient()
    assert len(one.preds)==20 and list(one.items.patient)==list(items.patient.unique()) and (one.items.images==3).all()
    for k,who in enumerate(one.items.patient):
        rows = np.flatnonzero(items.patient==who)
        torch.testing.assert_close(one.preds[k], preds[rows].double().mean(0), atol=1e-6, rtol=0)
        assert one.targs[k]==targs[rows[0]]
    targs[np.flatnonzero(items.patient=='p3')[2]] += 1
    with pytest.raises(ValueError, match='patient p3 has images of several classes .*have 1 patients in all'):
        CalibrationInterpretation.from_preds(preds, targs%K, items=items).per_patient()

def test_a_column_that_looks_like_patients_is_named_where_images_are_independent(recwarn):
    preds,targs = random_preds(8)
    of = CalibrationInterpretation.from_preds(preds, targs, items=pd.DataFrame(dict(PatientID=[1]*4+[2]*4, age=9)))
    assert of._patients() is None and "groups='PatientID'" in str(recwarn.pop(UserWarning).message)
    assert of._patients(False) is None and list(of._patients('PatientID'))==[0]*4+[1]*4 and not recwarn.list

def test_a_patient_of_two_sites_is_of_several():
    preds,targs = random_preds(6)
    items = pd.DataFrame(dict(patient=[0,0,1,1,2,2], site=list('NSNNSS'), age=[1,1,2,2,3,3], filename=list('abcdef')))
    one = CalibrationInterpretation.from_preds(preds, targs*0, items=items).per_patient().items
    assert list(one.site)==['several','N','S'] and list(one.age)==[1,2,3] and list(one.filename)==list('ace')

def test_what_is_judged_per_study_is_not_called_a_patient():
    preds,targs = random_preds(12)
    items = pd.DataFrame(dict(patient=[0]*6+[1]*6, study=[0]*3+[1]*3+[2]*6))
    of = CalibrationInterpretation.from_preds(preds, targs*0, items=items)
    assert [of.per_patient(o).what for o in (None,'patient','study',[0]*12)]==['patients','patients','studies','groups of images']
    assert len(of.per_patient('study').preds)==3 and list(of.per_patient('study').items.patient)==[0,0,1]
    assert set(of.per_patient('study').top_overconfident().study)<={0,1,2} and 'patient' in of.per_patient([0]*6+[1]*6).top_overconfident(12)

def test_a_threshold_that_finds_less_by_chance_is_told_from_one_that_does_not():
    "The least of 12 others is above two of 18 here in a third of all cases; patients count once"
    from ols_fastai.calibration.one_class import threshold_table
    valid = torch.linspace(.5, .9, 12)
    here = torch.cat([torch.full((2,), .4), torch.full((16,), .95)])
    def p_of(here, valid, **kwargs):
        ones = (torch.ones(len(here), 1).long(),torch.ones(len(valid), 1).long())
        return threshold_table(here[:,None], ones[0], (valid[:,None],ones[1]), ['torn'], (.99,), **kwargs).p.iloc[0]
    assert p_of(here, valid)==pytest.approx(18/30*17/29)
    twice = p_of(here.repeat_interleave(2), valid.repeat_interleave(2), groups=np.repeat(np.arange(18), 2))
    assert twice==pytest.approx(18/30*17/29)
    assert p_of(torch.cat([torch.full((9,), .4), torch.full((9,), .95)]), valid)<.01
