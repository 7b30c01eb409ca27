"A learner with its sets: coverage, export, refusal after a change, and one answer however an image is asked about."
import re, shutil, subprocess, sys, warnings
import cv2, numpy as np, pandas as pd, pytest, torch
from PIL import Image
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset
from fastai.basics import DataLoader, DataLoaders, Learner, accuracy, load_learner, no_random, noop, plt
from fastai.callback.progress import ProgressCallback
from fastai.layers import Flatten
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.all import aug_transforms, CategoryBlock, ColReader, ColSplitter, DataBlock, ImageBlock, PILImage
from ols_fastai.all import *
from ols_fastai.calibration.clinic import _halve, _network_hash
from ols_fastai.data.items import loader_table
from conftest import toy_learner

# ---- the promise

def logits(n, seed, K=5):
    "Over-confident logits, and true classes"
    g = torch.Generator().manual_seed(seed)
    z = 1.5*torch.randn(n, K, generator=g)
    return 2*z,torch.multinomial(z.softmax(1), 1, generator=g)[:,0]

def loader(n, seed): return DataLoader(TensorDataset(*logits(n, seed)), bs=1000, num_workers=0)

def logit_learner(n, seed, **kwargs):
    "Its inputs are its logits; loaders to train, to make sets (`n`) and to judge"
    net = nn.Linear(5, 5)
    with torch.no_grad():
        net.weight.copy_(torch.eye(5))
        net.bias.zero_()
    dls = DataLoaders(loader(10, 3*seed), loader(n, 3*seed+1), loader(2000, 3*seed+2), device='cpu')
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), **kwargs)
    learn.logger,learn.create_mbar = noop,False
    return learn.remove_cb(ProgressCallback)

@pytest.mark.parametrize('settings', [dict(kind='lac'), dict(), dict(kind='raps', k_reg=1), dict(halve=True),
                                      dict(kind='lac', miscoverage=.3)])
@pytest.mark.filterwarnings('ignore:.*thresholds')  # a score of RAPS may be above 1
def test_the_sets_hold_the_true_class_as_often_as_asked(settings):
    runs,miscoverage = 25,settings.get('miscoverage', .1)
    n = 99*2 if settings.get('halve') else 99
    hits = 0
    for seed in range(runs):
        learn = add_sets(logit_learner(n, seed), **settings)
        assert learn.sets.n==99
        hits += learn.coverage(learn.dls[2]).coverage.item()*2000
    k = int(np.ceil(100*(1-miscoverage)-1e-9))
    law = stats.betabinom(2000, k, 100-k)  # the hits of one run (Angelopoulos & Bates 2021, appendix C)
    off = (hits-runs*law.mean())/(runs*law.var())**.5
    assert off>-4 and (off<4 or settings.get('kind')!='lac')  # APS and RAPS never leave the label out

def test_each_class_is_covered_where_that_was_asked():
    learn = logit_learner(2000, 0)
    with torch.no_grad(): learn.model.bias[0] = -3.  # a class that the network hardly ever names
    least = {by: add_sets(learn, by=by, kind='lac').coverage(learn.dls[2], by='class').coverage.min()
             for by in (None,'class')}
    assert least[None]<.75 and least['class']>.85
    assert add_sets(learn, by='class').sets.by_class

# ---- images in files

K = 3
def write_images(root, n=30):
    "Three classes of noisy images, ten patients in each split; a row per image"
    g,rows = np.random.default_rng(0),[]
    for split in SPLITS:
        for i in range(n):
            label,fn = 'abc'[i%K],f'{split}{i}.png'
            a = g.normal(70+50*(i%K), 45, (8,8)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root/fn), a)
            rows.append((fn, label, split, f'{split}-{i//3}'))
    return pd.DataFrame(rows, columns=['filename','label','split','patient'])

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp('clinic')
    return root,write_images(root)

def small_net():
    return nn.Sequential(Flatten(), nn.BatchNorm1d(192), nn.Linear(192, K))

def make_learner(files, cbs=None, patients=False, **kwargs):
    root,df = files
    df = df if patients else df.drop(columns='patient')
    with no_random(0):
        dls = image_dls(df, root=root, size=8, bs=8, num_workers=0, device='cpu')
        learn = Learner(dls, small_net(), metrics=accuracy, path=root, **kwargs).remove_cb(ProgressCallback)
        with quiet_learner(learn): learn.fit(2, 1e-3, cbs=cbs)
    learn.logger,learn.create_mbar = noop,False
    return learn

def judged(learn): return [Path(o) for o in learn.predict_table(learn.dls[2]).filename]

@pytest.mark.parametrize('kind', ['lac','aps','raps'])
def test_an_image_has_one_answer_alone_in_a_batch_and_with_workers(files, kind):
    learn = add_sets(make_learner(files), miscoverage=.3, kind=kind)
    whole = learn.predict_table(learn.dls[2])
    names = whole.filename.tolist()
    alone = [learn.predict(o) for o in names]
    assert [o.classes for o in alone]==whole['set'].tolist() and [o.label for o in alone]==whole.label.tolist()
    assert whole['set size'].nunique()>1 and (whole['set size']==whole['set'].map(len)).all()
    np.testing.assert_allclose([o.probs.max().item() for o in alone], whole.probability, atol=1e-6)
    for order,bs,num_workers in ((range(30),7,0), (range(29,-1,-1),4,2)):
        some = learn.predict_table([names[i] for i in order], bs=bs, num_workers=num_workers)
        want = whole.iloc[list(order)].reset_index(drop=True)
        pd.testing.assert_frame_equal(some, want, check_exact=False, atol=1e-6)

def test_what_predict_gives(files):
    learn = add_sets(make_learner(files), miscoverage=.3)
    fn = judged(learn)[0]
    image,*out = learn.predict(fn, with_input=True)
    label,probs,classes = learn.predict(fn)
    assert isinstance(learn.predict(fn), SetPrediction) and image.shape==(3,8,8)
    assert out[0]==label and torch.equal(out[1], probs) and out[2]==classes
    fastais = Learner.predict(learn, fn)
    assert label==fastais[0] and torch.equal(probs, fastais[2])
    p = torch.as_tensor(probs).double()
    held = learn.sets(p[None], ids=item_ids(learn.dls.test_dl([fn])))[0]
    assert classes==tuple('abc'[i] for i in p.argsort(descending=True).tolist() if held[i])

def test_a_copy_under_another_name_has_the_same_set(files, tmp_path):
    learn = add_sets(make_learner(files), miscoverage=.3)
    names = judged(learn)
    for i,fn in enumerate(names): shutil.copy(fn, tmp_path/f'{i}.png')
    copies = learn.predict_table([tmp_path/f'{i}.png' for i in range(len(names))])
    assert copies['set'].tolist()==learn.predict_table(names)['set'].tolist()

def test_a_table_is_read_as_test_dl_reads_it_and_an_array_is_an_image(files):
    learn,(root,df) = add_sets(make_learner(files), miscoverage=.3, kind='lac'),files
    rows = df[df.split=='test'].iloc[:4]
    table = learn.predict_table(rows)
    assert table.filename.tolist()==[str(root/o) for o in rows.filename]
    arrays = learn.predict_table([cv2.imread(o) for o in table.filename])
    assert arrays.filename.tolist()==[f'number {i}' for i in range(4)]
    assert arrays['set'].tolist()==table['set'].tolist()

def test_a_plain_loader_has_no_names():
    learn = add_sets(logit_learner(99, 0))
    table = learn.predict_table(learn.dls[2])
    preds,_ = learn.get_preds(ds_idx=2)
    assert table.filename[7]=='number 7' and table.label.tolist()==preds.argmax(1).tolist()
    assert {o for s in table['set'] for o in s}<=set(range(5))

def test_fastais_own_loaders_paths_and_images(files, tmp_path):
    root,df = files
    df = df[df.split!='test'].assign(is_valid=df.split=='valid')
    block = DataBlock((ImageBlock,CategoryBlock), get_x=ColReader('filename', pref=root), get_y=ColReader('label'),
                      splitter=ColSplitter('is_valid'))
    learn = Learner(block.dataloaders(df, bs=8, num_workers=0, device='cpu'), small_net(), path=tmp_path)
    learn = add_sets(learn.remove_cb(ProgressCallback), miscoverage=.3)
    learn.export('clinic.pkl')
    back = load_quietly(tmp_path/'clinic.pkl')
    fn = root/'test4.png'
    rows = files[1].query('split=="test"').reset_index(drop=True)
    table = learn.predict_table(rows, bs=8)
    assert table.filename[4]==str(fn) and table['set'][4]==learn.predict(rows.iloc[4]).classes
    pd.testing.assert_frame_equal(back.predict_table(rows, bs=8), table)
    image = PILImage.create(fn)
    assert learn.predict(image).classes==back.predict(image).classes and learn.predict(image).label==table.label[4]

# ---- export

worker = """
import sys, torch
from fastai.learner import load_learner
learn = load_learner(sys.argv[1])
files = sys.argv[3:]
label,probs,classes = learn.predict(files[0])
table = learn.predict_table(files)
out = dict(label=str(label), probs=torch.Tensor(probs), classes=classes, sets=table['set'].tolist())
out.update(T=learn.model.T, probability=table.probability.tolist(), learner=type(learn).__name__)
torch.save(out, sys.argv[2])
"""
@pytest.mark.parametrize('kind', ['lac','aps'])
def test_an_exported_learner_gives_the_same_in_a_process_that_knows_fastai_alone(files, tmp_path, kind):
    learn = add_sets(make_learner(files, [OLSCallback(),Calibrate()]), halve=True, kind=kind, miscoverage=.3)
    names = judged(learn)
    label,probs,classes = learn.predict(names[0])
    table = learn.predict_table(names)
    learn.export(tmp_path/'clinic.pkl')
    args = [sys.executable, '-W', 'ignore', '-c', worker, tmp_path/'clinic.pkl', tmp_path/'out.pt', *names]
    r = subprocess.run(args, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert not r.returncode, r.stderr
    out = torch.load(tmp_path/'out.pt')
    assert (out['label'],out['classes'],out['learner'])==(label,classes,'SetLearner')
    assert torch.equal(out['probs'], torch.Tensor(probs)) and out['T']==learn.model.T
    assert out['sets']==table['set'].tolist() and out['probability']==table.probability.tolist()
    assert b'valid1.png' not in (tmp_path/'clinic.pkl').read_bytes()  # the list stays at home

def test_a_changed_network_in_a_file_is_noticed(files, tmp_path):
    learn = add_sets(make_learner(files), miscoverage=.3)
    learn.export(tmp_path/'clinic.pkl')
    back = load_quietly(tmp_path/'clinic.pkl')
    fn = judged(learn)[0]
    assert back.predict(fn).classes==learn.predict(fn).classes
    with torch.no_grad(): back.model[2].bias[0] += .01
    with pytest.raises(ValueError, match='make them again'): back.predict(fn)

def load_quietly(fn):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load_learner(fn)

# ---- refusal after a change

def train_on(learn):
    uncalibrate(learn)
    learn.fit(1, 1e-3)

@torch.no_grad()
def add_to(t): t.add_(.01)

changes = dict(
    weights=lambda learn: add_to(learn.model.model[2].weight),
    data=lambda learn: learn.model.model[2].weight.data.mul_(1.01),
    statistics=lambda learn: add_to(learn.model.model[1].running_mean),
    temperature=lambda learn: learn.model.set_scaling(scale=.123),
    calibrate=lambda learn: calibrate(learn, prior=.01),
    uncalibrate=uncalibrate,
    fit=train_on)

@pytest.mark.parametrize('change', list(changes))
def test_sets_of_another_network_are_refused(files, tmp_path, change):
    learn = add_sets(make_learner(files, Calibrate()), halve=True, miscoverage=.3)
    fn = judged(learn)[0]
    learn.predict(fn)
    changes[change](learn)
    asked = [lambda: learn.predict(fn), lambda: learn.predict_table([fn]), lambda: learn.coverage(learn.dls[2]),
             lambda: learn.export(tmp_path/'no.pkl')]
    for f in asked:
        with pytest.raises(ValueError, match=r'have changed since its sets were made.*add_sets\(learn\)'): f()
    assert not (tmp_path/'no.pkl').exists()
    learn.get_preds()  # what gives no sets goes on
    add_sets(learn, halve=True, miscoverage=.3).predict(fn)

def test_weights_that_are_loaded_again_are_the_same(files):
    learn = add_sets(make_learner(files), miscoverage=.3)
    fn = judged(learn)[0]
    before = learn.predict(fn)
    state = deepcopy(learn.model.state_dict())
    learn.fit(1, 1e-3)
    with pytest.raises(ValueError, match='changed'): learn.predict(fn)
    learn.model.load_state_dict(state)
    assert learn.predict(fn).classes==before.classes

def test_the_hash_knows_weights_not_how_they_are_kept():
    net = small_net()
    def known(model): return _network_hash(SimpleNamespace(model=model))
    assert known(torch.compile(net))==known(net)==known(deepcopy(net))
    scaled = CalibratedModel(net, scale=.5, used=[[1,2]])
    assert known(scaled)!=known(net) and known(CalibratedModel(net, scale=.5, used=[[3,4]]))==known(scaled)
    compiled = CalibratedModel(torch.compile(net), scale=.5)
    assert known(compiled)==known(scaled)
    flipped = deepcopy(net)
    flipped[2].weight.data = flipped[2].weight.data.flip(0)
    assert known(flipped)!=known(net) and known(deepcopy(net).bfloat16())!=known(net)

# ---- images that may not make sets

def test_images_that_trained_or_calibrated_the_network_are_refused(files, tmp_path):
    root,df = files
    learn = make_learner(files, Calibrate())
    with pytest.raises(ValueError, match='trained on images of this loader'): add_sets(learn, learn.dls.train)
    with pytest.raises(ValueError, match=r'30 of these 30 images.*valid0.png.*halve=True'): add_sets(learn)
    copies = df.assign(filename='copy-'+df.filename)  # other names, the same content
    for a,b in zip(df.filename, copies.filename): shutil.copy(root/a, tmp_path/b)
    other = image_dls(copies, root=tmp_path, size=8, bs=8, num_workers=0, device='cpu')
    with pytest.raises(ValueError, match='copy-valid0.png.*calibrated'): add_sets(learn, other.valid)
    assert type(learn) is Learner
    assert add_sets(learn, learn.dls[2], miscoverage=.3).sets.n==30
    with pytest.raises(ValueError, match='calibrated on'): learn.coverage(learn.dls[2])
    with pytest.raises(ValueError, match='calibrated this network'): learn.coverage(learn.dls.valid)
    forget_images(learn)  # as its text says
    assert add_sets(learn, miscoverage=.3).sets.n==30

def test_one_equal_image_is_a_warning():
    learn = logit_learner(300, 0)
    x,y = learn.dls.valid.dataset.tensors
    z,t = logits(300, 99)
    z[5] = x[0]
    learn.model = CalibratedModel(learn.model, item_ids(DataLoader(TensorDataset(z, t), bs=100)), scale=.5)
    with pytest.warns(UserWarning, match='1 of these 300 images.*by chance'): add_sets(learn)

def test_patients_stay_together_and_give_one_image_each(files):
    learn = make_learner(files, Calibrate(), patients=True)
    df = loader_table(learn.dls.valid)
    add_sets(learn, halve=True, miscoverage=.4, seed=3)
    patient = dict(zip(item_ids(learn.dls.valid)[:,0], df.patient))
    scaling = {patient[o] for o in learn.model.used[:,0].tolist()}
    makers = {patient[o] for o in learn.sets.ids[:,0].tolist()}
    assert len(scaling)==len(makers)==5 and not scaling & makers
    assert len(learn.sets.ids)==15 and learn.sets.n==5
    assert add_sets(learn, halve=True, miscoverage=.4, patient='nobody').sets.n==15

@pytest.mark.parametrize('kind', ['temperature','structured'])
def test_halves_are_calibrated_as_before_each_on_its_own(files, kind):
    learn = make_learner(files, Calibrate(kind))
    used = learn.model
    z,y = uncalibrate(learn).get_preds(act=noop)
    learn.model = used
    add_sets(learn, halve=True, miscoverage=.3, seed=1)
    a,b = _halve(None, 30, 1)
    want = fit_scaling(z[a], y[a], kind)
    preds = scale_logits(z.float(), **want).softmax(1)
    sets = ConformalSets(preds[b], y[b], .3, 'aps', seed=1, ids=item_ids(learn.dls.valid)[b])
    assert learn.model.kind==kind and learn.model is not used
    torch.testing.assert_close(torch.as_tensor(learn.get_preds()[0]), preds, atol=1e-5, rtol=0, check_dtype=False)
    assert sets.threshold==pytest.approx(learn.sets.threshold, abs=1e-5)

@pytest.mark.parametrize('n', [2,3,30])
def test_halves(n):
    a,b = _halve(None, n, 0)
    assert sorted([*a,*b])==list(range(n)) and len(a)==n//2
    with pytest.raises(ValueError, match='only one patient'): _halve(np.zeros(n, dtype=int), n, 0)

# ---- a learner as before

def test_it_is_the_same_learner_and_does_what_it_did(files):
    learn = make_learner(files, cbs=None)
    loss,dls,cbs,model = learn.loss_func,learn.dls,list(learn.cbs),learn.model
    want,before = learn.validate(),learn.get_preds(ds_idx=2)[0]
    out = add_sets(learn, miscoverage=.3)
    assert out is learn and isinstance(learn, SetLearner)
    assert learn.loss_func is loss and learn.dls is dls and learn.model is model and list(learn.cbs)==cbs
    assert all(o.learn is learn for o in cbs) and learn.validate()==want
    assert torch.equal(learn.get_preds(ds_idx=2)[0], before)
    learn.show_results(max_n=4)
    assert len([o for o in plt.gcf().axes if o.images])==4
    plt.close('all')
    assert len(CalibrationInterpretation.from_learner(learn, ds_idx=2).targs)==30
    assert deepcopy(learn).predict(judged(learn)[0]).classes==learn.predict(judged(learn)[0]).classes

def test_it_can_be_a_plain_learner_again(files):
    learn = add_sets(make_learner(files), miscoverage=.3)
    fn = judged(learn)[0]
    assert remove_sets(learn) is learn and type(learn) is Learner and not hasattr(learn, 'made_for')
    assert int(learn.predict(fn)[1])==learn.dls.vocab.o2i[learn.predict(fn)[0]]
    assert remove_sets(learn) is learn

@pytest.mark.parametrize('settings,message', [
    (dict(kind='top'), "'top'"), (dict(miscoverage=1.5), 'between 0 and 1'), (dict(by='scanner'), "None, or 'class'"),
    (dict(by=np.zeros(30)), "None, or 'class'")])
def test_what_fails_changes_nothing(files, settings, message):
    learn = make_learner(files, Calibrate())
    model = learn.model
    with pytest.raises(ValueError, match=message): add_sets(learn, halve=True, **settings)
    assert type(learn) is Learner and learn.model is model and not hasattr(learn, 'sets')

def test_learners_that_sets_are_not_for():
    class Other(Learner): pass
    learn = logit_learner(99, 0)
    learn.__class__ = Other
    with pytest.raises(TypeError, match='got Other'): add_sets(learn)
    learn = toy_learner(loss_func=nn.CrossEntropyLoss())  # without an activation: its outputs are logits
    with pytest.raises(ValueError, match='logits'): add_sets(learn)
    learn = logit_learner(99, 0)
    learn.dls.loaders = learn.dls.loaders[:1]
    with pytest.raises(ValueError, match='no number 1.*dl='): add_sets(learn)

def test_too_few_images_hold_everything_and_it_is_said():
    learn = logit_learner(5, 0)
    with pytest.warns(UserWarning, match='too few images'): add_sets(learn)
    assert (learn.predict_table(learn.dls[2])['set size']==5).all()

# ---- a batch with damaged files, and an exported learner that is judged

def test_a_damaged_file_has_a_row_that_says_so(files, tmp_path):
    learn = add_sets(make_learner(files), kind='lac')
    good = [Path(o) for o in judged(learn)[:3]]
    (tmp_path/'cut.png').write_bytes(good[0].read_bytes()[:60])
    given = [good[0], tmp_path/'cut.png', good[1], tmp_path/'none.png', good[2]]
    with pytest.raises(ValueError, match='cut.png'): learn.predict_table(given[:2])
    table = learn.predict_table(given, on_error='row')
    bad = [False,True,False,True,False]
    assert table.filename.tolist()==list(map(str, given))
    assert table.error.ne('').tolist()==bad==table.label.isna().tolist()
    assert 'cut.png' in table.error[1] and 'none.png' in table.error[3]
    answered = table.iloc[[0,2,4],:5].reset_index(drop=True)
    pd.testing.assert_frame_equal(answered, learn.predict_table(good), check_dtype=False)
    assert learn.predict_table([], on_error='row').empty and learn.predict_table(given[1:2], on_error='row').error[0]
    odd = learn.predict_table([good[0],None,b'bytes',good[1]], on_error='row')
    how = 'give a path, an array, or Image.open(io.BytesIO(data)) of an upload'
    said = [f'{o} is no image file: {how}' for o in ('NoneType','bytes')]
    assert odd.error.tolist()==['',*said,''] and odd.label.notna().tolist()==[True,False,False,True]
    assert learn.predict_table([None,good[0]], on_error='row').error.tolist()==[said[0],'']
    with pytest.raises(ValueError, match="'raise' or 'row'"): learn.predict_table(given, on_error='skip')
    with pytest.raises(ValueError, match='a list of paths'): learn.predict_table(learn.dls[2], on_error='row')

def test_a_loader_of_other_classes_is_refused(files):
    "Even where there are as many: their numbers mean something else"
    learn,(root,df) = make_learner(files),files
    for other in (df.assign(label=df.label+'x'), df[df.label!=learn.dls.vocab[0]]):
        dl = image_dls(other.drop(columns='patient'), root=root, size=8, bs=8, num_workers=0, device='cpu').valid
        for call in (calibrate, add_sets, CalibrationInterpretation.from_learner):
            said = f"the learner's classes are {learn.dls.vocab[0]}.*the loader's {dl.vocab[0]}"
            with pytest.raises(ValueError, match=said): call(learn, dl=dl)
    assert not isinstance(learn.model, CalibratedModel)
    same = image_dls(df.drop(columns='patient'), root=root, size=8, bs=8, num_workers=0, device='cpu').valid
    CalibrationInterpretation.from_learner(learn, dl=same)

def test_a_folder_of_images_has_a_table(files, tmp_path):
    learn = add_sets(make_learner(files), kind='lac')
    good = sorted(Path(o) for o in judged(learn)[:4])
    (tmp_path/'in').mkdir()
    for o in good[2:]: (tmp_path/'in'/o.name).write_bytes(o.read_bytes())
    for o in good[:2]: (tmp_path/o.name).write_bytes(o.read_bytes())
    (tmp_path/'notes.txt').write_text('text'); (tmp_path/'odd.xyz').write_bytes(b'1')
    with pytest.warns(UserWarning, match='1 files .xyz'): table = learn.predict_table(tmp_path)
    assert sorted(Path(o).name for o in table.filename)==sorted(o.name for o in good)
    want = learn.predict_table(table.filename.map(Path).tolist())
    pd.testing.assert_frame_equal(table, want)
    (tmp_path/'none').mkdir()
    with pytest.raises(ValueError, match='none has no images'): learn.predict_table(tmp_path/'none')

def test_coverage_by_a_column(files):
    learn = add_sets(make_learner(files), kind='lac')
    df = loader_table(learn.dls[2]).assign(site=lambda d: np.where(np.arange(len(d))%2, 'A', 'B'))
    pd.testing.assert_frame_equal(learn.coverage(df, by='site'), learn.coverage(df, by=df.site.tolist()))
    with pytest.raises(ValueError, match="'scanner' is no column: .*site"): learn.coverage(df, by='scanner')

def test_sets_of_one_class_are_counted_by_what_they_say(files):
    "And how many of them are right"
    learn = add_sets(make_learner(files), kind='lac', miscoverage=.4)
    df = loader_table(learn.dls[2])
    table = learn.predict_table(df).assign(true=df.label.to_numpy())
    alone = table[table['set size']==1]
    right = (alone.label==alone.true).groupby(alone.label).mean()
    found = learn.coverage(df, by='predicted')
    assert found.n.to_dict()==table.label.value_counts().to_dict() and 0<right.mean()<1
    assert found['one class right'].dropna().to_dict()==pytest.approx(right.to_dict())
    assert found['one class'].to_dict()==pytest.approx((table['set size']==1).groupby(table.label).mean().to_dict())

def test_halving_says_that_the_temperature_is_another(files, capsys):
    learn = calibrate(make_learner(files))
    learn.add_cb(ProgressCallback()); add_sets(learn, kind='lac', halve=True)
    assert f'Calibrated again, before the sets are made: T={learn.model.T:.4g}' in capsys.readouterr().out

def test_an_exported_learner_is_judged_on_a_table(files, tmp_path):
    learn = add_sets(make_learner(files), kind='lac')
    learn.export(tmp_path/'c.pkl')
    served = load_quietly(tmp_path/'c.pkl')
    df = loader_table(learn.dls[2])
    pd.testing.assert_frame_equal(served.coverage(df), learn.coverage(learn.dls[2]))
    with pytest.raises(ValueError, match='exported learner has none of its own'): served.coverage(served.dls.valid)

def test_threads_take_turns(files):
    "A web service's: with fastai's progress bar, which keeps itself in the learner"
    from concurrent.futures import ThreadPoolExecutor
    learn = add_sets(make_learner(files), miscoverage=.3)
    learn.add_cb(ProgressCallback())
    names = judged(learn)[:10]*6
    want = [learn.predict(o) for o in names[:10]]*6
    with ThreadPoolExecutor(4) as pool: got = list(pool.map(learn.predict, names))
    assert all(a.label==b.label and a.classes==b.classes and torch.equal(a.probs, b.probs) for a,b in zip(got, want))

def test_a_table_with_all_probabilities_and_one_of_nothing(files):
    learn = add_sets(make_learner(files), miscoverage=.3)
    names = judged(learn)[:5]
    table = learn.predict_table(names, each=True)
    preds = torch.stack([learn.predict(o).probs for o in names])
    np.testing.assert_allclose(table[['p(a)','p(b)','p(c)']], preds, atol=1e-6)
    assert learn.predict_table(names, each=True, on_error='row')['p(b)'].tolist()==table['p(b)'].tolist()
    none = learn.predict_table([])
    assert len(none)==0 and list(none)==list(learn.predict_table(names))

def folder_of(root, seed, n=24):
    "Dark squares are a, bright ones b"
    rng = np.random.default_rng(seed)
    for k,label in enumerate('ab'):
        (root/label).mkdir(parents=True)
        for i in range(n):
            picture = rng.integers(0, 60, (8,8), dtype=np.uint8)+120*k
            Image.fromarray(picture).save(root/label/f'{i}.png')
    return read_folder(root)

def folder_learner(df, path):
    learn = Learner(image_dls(df, size=8, bs=8, num_workers=0), nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
                    loss_func=CrossEntropyLossFlat(), path=path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(20, .01)
        return add_sets(calibrate(learn), halve=True)

def test_a_folder_of_another_site_is_read_there_and_not_in_the_trainings(tmp_path):
    here,there = folder_of(tmp_path/'here', 0),folder_of(tmp_path/'there', 1)
    for o in ('a','b'): (tmp_path/'there'/o).rename(tmp_path/'there'/f'{o}_')          # the classes changed places
    for o,p in (('a','b'),('b','a')): (tmp_path/'there'/f'{o}_').rename(tmp_path/'there'/p)
    df = split_by_group(here, 'filename', valid=.4, test=.2)
    with pytest.warns(UserWarning, match='these sets are made of .* may hold that of'):
        learn = folder_learner(df, tmp_path)
    learn.export('a.pkl')
    served = load_quietly(tmp_path/'a.pkl')
    with served.no_bar():
        assert served.coverage(here[df.split=='test']).loc['all','coverage']>.8
        assert served.coverage(there).loc['all','coverage']<.2                          # each is taken for the other
        assert (served.predict_table(there).label!=there.label).all()
        with pytest.raises(ValueError, match="no class 'c', which 48 rows"): served.coverage(there.assign(label='c'))
        with pytest.raises(ValueError, match='no column.*label'): served.coverage(there.drop(columns='label'))
        with pytest.raises(ValueError, match='no rows'): served.coverage(there[:0])
        both = pd.concat([there, here[df.split=='test']])                       # nobody knows its folder any more
        with pytest.warns(UserWarning, match='are looked for in .*here, the training'), pytest.raises(ValueError):
            served.coverage(both)                                               # and there they made the sets
        served = remove_sets(served)
        adapt_learner(served, {'b': 30, 'a': 10}, learn.trained_shares)
        p = served.get_preds(dl=served.dls.test_dl(here))[0]
        adapt_learner(served, [10, 30])                                         # the training's are in the file
        torch.testing.assert_close(served.get_preds(dl=served.dls.test_dl(here))[0], p, atol=1e-6, rtol=0)
        with pytest.raises(ValueError, match="no share of the class 'a'"): adapt_learner(served, {'b': 3})
        with pytest.raises(ValueError, match="no class 'c'"): adapt_learner(served, {'a': 1, 'b': 3, 'c': 1})
        with pytest.raises(ValueError, match='take the shares'): add_sets(served, dl=there, halve=True)
        assert served.model.kind=='temperature and shares'
        with pytest.warns(UserWarning, match='shares of adapt_learner away'): calibrate(served, dl=there)

def test_the_report_has_the_sets_that_the_learner_gives(files, tmp_path):
    "Of all images, and of each class; as `coverage` counts them"
    learn = add_sets(make_learner(files, Calibrate(), patients=True), halve=True, miscoverage=.4)
    interp = CalibrationInterpretation.from_learner(learn, dl=learn.dls[2])
    text = calibration_report({'net': interp}, tmp_path/'r.html', n=5).read_text().replace('\N{NO-BREAK SPACE}', ' ')
    part = text[text.index('net: the sets that it gives, APS, which may miss 40 %'):]
    rows = re.findall(r'<tr>(.*?)</tr>', part[:part.index('</table>')], re.S)[1:]
    def cells(row):
        return [re.sub('<[^>]+>', '', o).strip() for o in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row, re.S)]
    want = pd.concat([learn.coverage(learn.dls[2]), learn.coverage(learn.dls[2], by='class')])
    assert [cells(row)[0] for row in rows]==list(want.index)
    for row,(_,o) in zip(map(cells, rows), want.iterrows()):
        assert row[1]==f'{o.n:.0f}'
        assert row[2].startswith(f'{100*o.coverage:.1f} % ({100*o.low:.1f} % to {100*o.high:.1f}')
    part = text[text.index('net: its sets of one class, by the class that they name'):]
    by = learn.coverage(learn.dls[2], by='predicted')
    for row in re.findall(r'<tr>(.*?)</tr>', part[:part.index('</table>')], re.S)[1:]:
        name,n,share = cells(row)
        assert int(n)==round(by['one class'].get(name, 0)*by.n.get(name, 0))
        assert n=='0' or share.startswith(f"{100*by['one class right'][name]:.1f} % (")
    assert 'No scaling: the validation images have calibrated' in text and 'no conformal sets' not in text
    with pytest.warns(UserWarning, match='are infinite'): add_sets(learn, halve=True, seed=1)
    stale = calibration_report({'net': interp}, tmp_path/'r.html', n=5).read_text()
    assert 'the sets that it gives' not in stale
    assert 'was trained or calibrated after it was judged: judge it again' in stale
    learn.model.model[2].weight.data += 1
    interp = CalibrationInterpretation.from_learner(learn, dl=learn.dls[2])
    text = calibration_report({'net': interp}, tmp_path/'r.html', n=5).read_text()
    assert 'the sets that it gives' not in text and 'have changed' in text

def test_loaders_of_other_classes_in_the_place_of_its_own_are_refused(tmp_path):
    "Another spelling may be another order: a network that knows its classes gives no answer under other names"
    df = split_by_group(folder_of(tmp_path/'here', 0), 'filename', valid=.4, test=.2)
    learn = folder_learner(df, tmp_path)
    learn.export('a.pkl')
    served = load_quietly(tmp_path/'a.pkl')
    own = served.dls
    served.dls = image_dls(df.assign(label=df.label.map({'a': 'z', 'b': 'b'})), root=tmp_path/'here', size=8, bs=8)
    new = df[df['split']=='valid']
    with served.no_bar():
        for f in (lambda: served.predict_table(new), lambda: served.predict(tmp_path/'here/a/0.png'),
                  lambda: served.export('b.pkl'), lambda: served.coverage(new), lambda: calibrate(served),
                  lambda: add_sets(served, halve=True), lambda: adapt_learner(served, [1, 2], [1, 1])):
            with pytest.raises(ValueError, match='for the classes a, b, and learn.dls has b, z'): f()
        assert not (tmp_path/'b.pkl').exists()
        served.dls = own
        assert served.coverage(df[df['split']=='test']).n.iloc[0]==sum(df['split']=='test')
    bare = add_sets(learn_of_two(df, tmp_path), df[df['split']=='test'])            # sets without a calibration
    bare.dls = image_dls(df.assign(label=df.label.map({'a': 'z', 'b': 'b'})), root=tmp_path/'here', size=8, bs=8)
    with pytest.raises(ValueError, match='for the classes a, b, and learn.dls has b, z'): bare.predict_table(new)

def learn_of_two(df, path):
    learn = Learner(image_dls(df, size=8, bs=8, num_workers=0), nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
                    loss_func=CrossEntropyLossFlat(), path=path)
    learn.logger,learn.create_mbar = noop,False
    return learn

def test_a_network_may_be_trained_on_for_other_classes(tmp_path):
    "The scaling is gone as the training starts, and its classes with it"
    df = split_by_group(folder_of(tmp_path/'here', 0), 'filename', valid=.4, test=.2)
    learn = calibrate(learn_of_two(df, tmp_path))
    learn.dls = image_dls(df.assign(label=df.label.map({'a': 'z', 'b': 'b'})), root=tmp_path/'here', size=8, bs=8)
    with learn.no_bar(): learn.fit(1, .01, cbs=Calibrate())
    assert learn.model.classes==['b','z'] and learn.model.kind=='temperature'

def test_merged_transforms_are_told_part_by_part(tmp_path):
    df = split_by_group(folder_of(tmp_path/'here', 0), 'filename', valid=.4, test=.2)
    tfms = aug_transforms(do_flip=False, max_rotate=12, max_zoom=1.3, max_lighting=.25, max_warp=.1)
    said = describe_learner(Learner(image_dls(df, size=8, bs=8, batch_tfms=tfms), small_net()))['batch transforms']
    for o in ('rotate (max_deg 12, p 0.75)','zoom (min_zoom 1, max_zoom 1.3, p 0.75)','warp (magnitude 0.1, p 0.75)',
              'brightness (max_lighting 0.25, p 0.75)','contrast (max_lighting 0.25, p 0.75)'): assert o in said, said
    assert 'partial' not in said

def test_a_warning_that_a_service_made_an_error_has_a_row(files, tmp_path):
    learn = add_sets(make_learner(files), miscoverage=.3)
    good = judged(learn)[0]
    Image.fromarray(np.full((8,8), 4000, np.uint16)).save(tmp_path/'dark.png')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='an image of 16 bits')
        with pytest.raises(UserWarning): learn.predict(tmp_path/'dark.png')
        table = learn.predict_table([good, tmp_path/'dark.png'], on_error='row')
    assert table.error.str.contains('16 bits has no value above 4095').tolist()==[False,True]
    assert table.label.isna().tolist()==[False,True]

def test_a_loaded_network_tells_other_shares_and_is_believed_once_adapted(tmp_path):
    df = split_by_group(folder_of(tmp_path/'here', 0), 'filename', valid=.4, test=.2)
    folder_learner(df, tmp_path).export('a.pkl')
    served = load_quietly(tmp_path/'a.pkl')
    there = folder_of(tmp_path/'there', 1, n=48)
    there = there[(there.label=='a')|(there.groupby('label').cumcount()<8)]
    def data():
        with served.no_bar(): interp = CalibrationInterpretation.from_learner(served, dl=there)
        text = calibration_report({'net': interp}, tmp_path/'r.html', n=5).read_text()
        return text[text.index('id="data"'):].replace('\N{NO-BREAK SPACE}', ' ')
    assert '2 of 2 classes are more or less frequent here than in the training of net (' in data()
    assert 'adapt_learner of ols_fastai' in data()
    adapt_learner(served, {'a': 48, 'b': 8})
    assert 'No class is more or less frequent here than in the shares that net was adapted to, beyond chance.' in data()
    adapt_learner(served, {'a': 8, 'b': 48})
    assert '2 of 2 classes are more or less frequent here than in the shares that net was adapted to' in data()
    there = there.iloc[:20]
    assert '20 images are too few to tell whether classes are more or less frequent here than in the shares' in data()

def test_an_export_that_fails_leaves_the_file_of_before(tmp_path, monkeypatch):
    learn = folder_learner(split_by_group(folder_of(tmp_path/'here', 0), 'filename', valid=.4, test=.2), tmp_path)
    shutil.rmtree(tmp_path/'here')
    learn.export('a.pkl')
    before = (tmp_path/'a.pkl').read_bytes()
    def half(o, f, **kwargs):
        Path(f).write_bytes(b'half')
        raise KeyboardInterrupt
    monkeypatch.setattr('fastai.learner.torch.save', half)
    with pytest.raises(KeyboardInterrupt): learn.export('a.pkl')
    assert (tmp_path/'a.pkl').read_bytes()==before and [o.name for o in tmp_path.iterdir()]==['a.pkl']

def test_patients_of_training_or_validation_among_those_of_the_sets_are_said(files):
    "Of sets and of what judges them; the network's own validation images are no others"
    learn = make_learner(files, Calibrate(), patients=True)
    df = learn.dls[2].items.frame()
    def of(o): return df.assign(patient=np.resize(loader_table(o).patient.unique(), len(df)))
    with pytest.warns(UserWarning, match='given sets on images of .* patients who are in its training too'):
        add_sets(learn, of(learn.dls.train))
    with pytest.warns(UserWarning, match='given sets on images of .* patients who are in its validation too'):
        add_sets(learn, of(learn.dls.valid))
    with pytest.warns(UserWarning, match='judged on images of .* patients who are in its validation too'):
        CalibrationInterpretation.from_learner(learn, dl=of(learn.dls.valid))
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.* too, such as')
        add_sets(learn, halve=True, miscoverage=.4)
        coverage = learn.coverage(learn.dls[2])
        CalibrationInterpretation.from_learner(make_learner(files, patients=True))   # on its validation images
    assert coverage.n.tolist()==[len(df)]
    with pytest.warns(UserWarning, match='judged on images of .* patients who are in its training too'):
        learn.coverage(of(learn.dls.train))
