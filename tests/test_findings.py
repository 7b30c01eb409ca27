"Multi-label and yes-or-no networks: judged, calibrated and reported finding by finding."
import re, warnings
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from sklearn.metrics import log_loss, roc_auc_score
from fastai.basics import DataLoader, DataLoaders, IndexSplitter, Learner, nn, no_random, noop
from fastai.callback.progress import ProgressCallback
from fastai.losses import BCEWithLogitsLossFlat
from fastai.vision.all import ColReader, DataBlock, ImageBlock, MultiCategoryBlock
from ols_fastai.all import *

names = ['effusion','fracture','nodule']

@pytest.fixture(scope='module')
def xrays(tmp_path_factory):
    "60 images with a bright third for each finding that they have"
    root,rng,rows = tmp_path_factory.mktemp('xrays'),np.random.default_rng(0),[]
    for i in range(60):
        has = rng.random(3)<.4
        a = rng.integers(0, 60, (24,24))
        for k in range(3): a[8*k:8*k+8] += 120*has[k]
        Image.fromarray(a.astype(np.uint8)).save(root/f'{i}.png')
        rows.append((f'{i}.png', ' '.join(n for n,h in zip(names, has) if h), i//2))
    return root,pd.DataFrame(rows, columns=['filename','labels','patient'])

def block_learner(xrays):
    root,df = xrays
    block = DataBlock(blocks=(ImageBlock, MultiCategoryBlock(vocab=names)), get_x=ColReader('filename', pref=root),
                      get_y=ColReader('labels', label_delim=' '), splitter=IndexSplitter(range(30, 60)))
    with no_random():
        dls = block.dataloaders(df, bs=10, num_workers=0, device='cpu')
        learn = Learner(dls, create_model('small_cnn', 3), path=root)
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 3e-3)
    return learn

def test_a_learner_of_multicategoryblock(xrays, tmp_path):
    learn = block_learner(xrays)
    interp = CalibrationInterpretation.from_learner(learn)
    y = np.stack([xrays[1].labels[30:].str.contains(n) for n in names], 1)
    assert interp.multi_label and interp.vocab==names and (interp.targs.numpy()==y).all()
    t = interp.class_table(groups=False)
    for k,name in enumerate(names):
        assert t.AUROC[name]==pytest.approx(roc_auc_score(y[:,k], interp.preds[:,k]))
    want = log_loss(y.ravel(), interp.preds.numpy().ravel())
    assert interp.table().value['NLL, mean of the findings']==pytest.approx(want, abs=1e-5)
    m = interp.top_overconfident(3)
    assert m.confidence.is_monotonic_decreasing and (m.confidence>=.5).all()
    for i,r in m.iterrows():
        k = names.index(r.true.removeprefix('no '))
        assert bool(y[i,k])==(not r.true.startswith('no ')) and {r.true,r.predicted}=={names[k],f'no {names[k]}'}
    for wrong in (lambda: interp.stats, interp.confusion_matrix, interp.most_confused):
        with pytest.raises(ValueError, match='multi-label'): wrong()
    interp.plot_top_overconfident(2)
    interp.plot_class('nodule')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fn = calibration_report({'network': interp}, tmp_path/'r.html')
    text = fn.read_text().replace('\N{NO-BREAK SPACE}', ' ')
    wanted = ('One finding at a time','Pictures of findings','Confident mistakes','95 % intervals by patients')
    for o in wanted: assert o in text
    for o in ('Conformal sets','Top-1','Parts of this report are missing'): assert o not in text

def test_a_calibrated_network_is_not_judged_on_the_images_that_calibrated_it(xrays):
    learn = block_learner(xrays)
    z,y = learn.get_preds(act=noop)
    for kind in ('temperature','findings','logistic'):
        calibrate(learn, kind=kind)
        want = scale_logits(z, **{k: torch.as_tensor(o).float() for k,o in fit_finding_scaling(z, y, kind).items()})
        want = want.sigmoid()
        assert torch.allclose(learn.get_preds()[0], want, atol=1e-5)
        with pytest.raises(ValueError, match='calibrated this network'):
            CalibrationInterpretation.from_learner(learn)
    with pytest.raises(ValueError, match='trained on images'): calibrate(learn, dl=learn.dls.train)
    learn.save('calibrated')
    fresh = block_learner(xrays)
    fresh.model = CalibratedModel(fresh.model)
    fresh.load('calibrated')
    assert fresh.model.kind=='logistic' and torch.equal(fresh.model.scale, learn.model.scale)
    assert torch.equal(fresh.model.bias, learn.model.bias) and fresh.model.T is None

@pytest.mark.parametrize('shape', ['logits (N,1), classes (N,)', 'logits (N,1), (N,1) of 0 and 1'])
def test_yes_or_no_by_one_logit(shape, tmp_path):
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:,0]+.5*x[:,1]>0)
    targs = y.long() if 'classes' in shape else y[:,None].float()
    ds = [torch.utils.data.TensorDataset(x[o], targs[o]) for o in (slice(0,200),slice(200,400))]
    dls = DataLoaders.from_dsets(*ds, bs=50, device='cpu', num_workers=0)
    dls.vocab = ['benign','malignant']
    learn = Learner(dls, nn.Linear(4, 1), loss_func=BCEWithLogitsLossFlat(), path=tmp_path).remove_cb(ProgressCallback)
    with learn.no_logging(): learn.fit(1)
    interp = CalibrationInterpretation.from_learner(learn)
    assert interp.vocab==['malignant']
    assert interp.class_table().AUROC['malignant']==pytest.approx(roc_auc_score(y[200:], interp.preds[:,0]))
    calibrate(learn)
    two = torch.cat([torch.zeros(200,1), uncalibrate(learn).model(x[200:]).detach()], 1)
    assert calibrate(learn).model.T==pytest.approx(fit_temperature(two, y[200:].long(), logits=True), rel=1e-5)

def test_a_prior_keeps_the_temperature_of_a_rare_finding_near_one():
    g = torch.Generator().manual_seed(1)
    z = 3*torch.randn(500, 2, generator=g)-torch.tensor([0.,14.])
    y = (torch.rand(500, 2, generator=g)<(z/3).sigmoid()).long()
    y[:,1] = 0
    y[z[:,1].argmax(),1] = 1
    T,wild = (1/fit_finding_scaling(z, y, 'findings', prior)['scale'] for prior in (.5,None))
    assert T[0]==pytest.approx(3, rel=.25) and .3<T[1]<2.5 and abs(wild[1].log())>abs(T[1].log())

@pytest.mark.parametrize('bias', [True,False])
@pytest.mark.parametrize('kind', ['temperature','findings','logistic'])
def test_a_scaling_of_findings_folds_into_the_last_layer(kind, bias):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(90, 4, generator=g)
    y = (x[:,:3]+.5*torch.randn(90, 3, generator=g)>.8).float()
    loaders = [DataLoader(torch.utils.data.TensorDataset(x[o], y[o]), bs=30) for o in (slice(0,30), slice(30,90))]
    net = nn.Sequential(nn.Linear(4,8), nn.ReLU(), nn.Linear(8,3,bias=bias))
    learn = Learner(DataLoaders(*loaders), net, loss_func=BCEWithLogitsLossFlat())
    with learn.no_bar(): calibrate(learn, kind=kind)
    plain = fold_scaling(learn)
    want = learn.model.eval()(x)
    torch.testing.assert_close(plain(x), want, atol=1e-5, rtol=0)
    assert (want-learn.model.model(x)).abs().max()>.05 and not isinstance(plain, CalibratedModel)

def test_sets_are_for_one_class_per_image():
    x,y = torch.randn(20, 4),torch.ones(20, 3)
    dl = DataLoader(torch.utils.data.TensorDataset(x, y), bs=10)
    learn = Learner(DataLoaders(dl, dl), nn.Linear(4,3), loss_func=BCEWithLogitsLossFlat())
    with pytest.raises(ValueError, match='multi-label.*class_table'): add_sets(learn)

def test_training_methods_of_classes_refuse_findings_by_name():
    ds = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.randint(0, 2, (40,3)).float())
    dls = DataLoaders.from_dsets(ds, ds, bs=20, device='cpu', num_workers=0)
    learn = Learner(dls, nn.Linear(4,3), loss_func=BCEWithLogitsLossFlat())
    with pytest.raises(TypeError, match='multi-label'), learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=OLSCallback())

def test_networks_of_two_kinds_have_no_report_together(tmp_path):
    p = torch.rand(50, 3)
    both = {'a': (p, (p>.5).long()), 'b': ((4*p).softmax(1), p.argmax(1))}
    with pytest.raises(ValueError, match='multi-label'): calibration_report(both, tmp_path/'r.html')

def test_two_networks_of_findings(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(800,14))*2-2
    y = (rng.random(z.shape)<1/(1+np.exp(-z))).astype(int)
    items = pd.DataFrame(dict(site=['x','y']*250))
    def run(a):
        p = 1/(1+np.exp(-a*z))
        return dict(preds=p[:500], targs=y[:500], valid_preds=p[500:], valid_targs=y[500:],
                    vocab=[f'f{i}' for i in range(14)], items=items)
    runs = {'good': run(1), 'sure': run(2)}
    text = calibration_report(runs, tmp_path/'r.html', by=['site']).read_text()
    words = ' '.join(re.sub('<[^>]+>', ' ', re.sub('base64,[^"]*', '', text)).split())
    assert 'sure, one temperature' in words and 'good, by site' in words and 'findings 14' in words
    assert re.search('good: macro AUROC [.0-9]+ [^:]*: none is shown to be off', words)
    assert re.search('sure: macro AUROC [^:]*: 14 of 14 are off beyond chance: f.* and 8 more', words)
    t = class_table(runs['good']['preds'], y[:500], runs['good']['vocab'])
    one_by_one = t.index[(t['O/E_low']>1)|(t['O/E_high']<1)].tolist()   # what 14 looks would find
    found = re.search('good: macro AUROC.*?From a probability', words)[0]
    assert ('By itself each of these would be' in found)==bool(one_by_one) and all(o in found for o in one_by_one[:3])
    s = t.sensitivity.dropna().sort_values(kind='stable')
    lost = s.index[s<.05].tolist()
    assert f'one half on it finds {100*s.iloc[-1]:.1f} % of {s.index[-1]} and ' in words
    least = f"less than 5 % of {', '.join(lost[:6])}" if lost else f'{100*s.iloc[0]:.1f} % of {s.index[0]}: choose'
    assert least in words
    of = np.arange(500)%2==0
    row = class_table(runs['sure']['preds'][:500][of], y[:500][of], runs['sure']['vocab']).loc['f3']
    ratios = text.split('sure, by site: images with a finding over those')[-1].split('</table>')[0]
    assert 'x (250)' in ratios
    assert f"{row['O/E']:.2f} ({row['O/E_low']:.2f}\xa0to\xa0{row['O/E_high']:.2f})" in ratios
    d = findings_difference(runs['sure']['preds'], runs['good']['preds'], y[:500])
    share = y[:500].mean(0)
    alone = -(share*np.log(share)+(1-share)*np.log(1-share)).mean()
    assert f'has a mean NLL of {alone:.3f} and a mean Brier score of {(share*(1-share)).mean():.3f}.' in words
    assert (d.value['macro AUROC'],d.low['macro AUROC'])==(0,0) and d.low['NLL, mean of the findings']>0
    assert f"{d.value['NLL, mean of the findings']:+.3f} (" in words.split('Differences with 95')[1][:200]

def test_false_alarms_are_among_the_confident_mistakes():
    "Of rare findings the surest mistakes are missed ones; half of the rows are for the others, where there are any"
    p = torch.full((40,2), .02); p[:3,0] = .6
    y = torch.zeros(40, 2); y[10:30,1] = 1
    interp = CalibrationInterpretation.from_preds(p, y, ['mass','nodule'])
    m = interp.top_overconfident(4)
    assert m.predicted.tolist()==['no nodule','no nodule','mass','mass'] and m.index.tolist()==[10,11,0,1]
    assert interp.top_overconfident(20).predicted.value_counts().to_dict()=={'no nodule': 17, 'mass': 3}
    one = CalibrationInterpretation.from_preds(p, torch.zeros(40, 2), ['mass','nodule'])
    assert one.top_overconfident(4).predicted.tolist()==['mass']*3

def test_single_findings_stand_in_the_summary():
    from ols_fastai.calibration.finding_sections import _found, _uncorrected
    columns = {'O/E': [1.2,.6,1.], 'O/E_low': [1.06,.4,.8], 'O/E_high': [1.4,.9,1.2], 'sensitivity': [.03,.5,np.nan],
               'n': [20,20,20]}
    t = pd.DataFrame(columns, index=['Pneumothorax','Fibrosis','Mass'])
    said = _uncorrected(t)
    assert 'By itself each of these would be: Pneumothorax (1.20' in said
    assert 'Fibrosis (0.60' in said and 'Mass' not in said
    assert 'By itself' not in _uncorrected(t.loc[['Mass']])
    assert 'it finds 50.0 % of Fibrosis and less than 5 % of Pneumothorax:' in _found(t)
    assert 'it finds 50.0 % of Fibrosis:' in _found(t.assign(n=[9,10,20]))  # of nine nobody can tell
    assert 'it finds 50.0 % of Fibrosis:' in _found(t.loc[['Fibrosis','Mass']])
    assert _found(t.loc[['Mass']])==''

def test_the_threshold_that_finds_most_is_chosen_on_validation_images(tmp_path):
    "The highest that finds 9 of 10; here it finds what it finds here"
    y = torch.zeros(40, 1).long()
    y[:10] = 1
    valid = torch.cat([torch.linspace(.95, .05, 10), torch.full((30,), .1)])[:,None]  # the ninth has .15
    here = torch.cat([torch.full((5,), .9), torch.full((5,), .1), torch.full((10,), .2), torch.full((20,), .1)])[:,None]
    r = dict(preds=here, targs=y, vocab=['nodule'])
    def text(): return (tmp_path/'a.html').read_text().replace('\N{NO-BREAK SPACE}', ' ')
    def row(**kwargs):
        text = calibration_report({'net': dict(r, **kwargs)}, tmp_path/'a.html', n=5).read_text()
        t = text[text.index('the highest threshold that finds the share of a finding'):]
        return t[:t.index('</figcaption>')],re.findall('<td[^>]*>(.*?)</td>', t)[:7]
    said,found = row(valid_preds=valid, valid_targs=y)
    assert 'of the validation images; * finds less' in said
    assert [o.split(' (')[0] for o in found]==['10','0.1499','50','67','33','80','10']   # .15 in fp32 is a little less
    assert 'With all of these thresholds 37.5 % of the images' in text()
    assert '33.3 % of those that have none' in text()
    said,found = row()
    assert 'of these images' in said and found[1]=='0.1' and found[2].startswith('100 (')
    y[0] = 0
    calibration_report({'net': r}, tmp_path/'a.html', n=5)
    assert 'the highest threshold' not in text()  # nine are too few

def test_the_summary_tells_a_wrong_average_from_a_wrong_slope(tmp_path):
    "Twice as extreme and right on average is no finding that is more frequent than said"
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=g)*1.5-torch.tensor([0.,1.])
    y = (torch.rand(4000, 2, generator=g)<z.sigmoid()).long()
    p = torch.stack([(2*z[:,0]).sigmoid(), (z[:,1]-1).sigmoid()], 1)
    r = dict(preds=p, targs=y, vocab=['extreme','shifted'])
    text = calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text()
    assert '2 of 2 are off beyond chance' in text and 'furthest off: shifted' in text
    assert '1 more frequent than their probabilities say, 0 less, 1 not shown to be off on average' in text
    assert 'probabilities are too extreme (slope below 1) in 1 of the 2 findings' in text

def cells(text, caption):
    "Cells of a table of the page by row and column; its caption begins so"
    part = text[text.index(caption):]
    part = part[:part.index('</table>')].replace('\N{NO-BREAK SPACE}', ' ').replace('\N{MINUS SIGN}', '-')
    rows = [re.findall('<t[hd][^>]*>(.*?)</t[hd]>', o) for o in re.findall('<tr>(.*?)</tr>', part, re.S)]
    head,*body = [[re.sub('<[^>]+>', '', o) for o in row] for row in rows]
    return pd.DataFrame([o[1:] for o in body], index=[o[0] for o in body], columns=head[1:])

def words(text): return ' '.join(re.sub('<[^>]+>', ' ', re.sub('base64,[^"]*', '', text)).split())

@pytest.fixture(scope='module')
def plain_and_sure():
    "Two networks of three findings; one ranks them better and is too sure. Their targets"
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1200,3))*2-1
    y = (rng.random(z.shape)<1/(1+np.exp(-z))).astype(int)
    views = pd.DataFrame(dict(view=['PA','AP','AP']*200, patient=np.arange(600)//6))
    def net(scale, noise):
        p = 1/(1+np.exp(-scale*(z+noise*rng.normal(size=z.shape))))
        valid = dict(valid_preds=p[600:], valid_targs=y[600:])
        return dict(preds=p[:600], targs=y[:600], **valid, vocab=['mass','nodule','hernia'], items=views)
    return {'plain': net(.7, 1.), 'sure': net(3., .2)},y[:600]

def scaled(run):
    "Probabilities with slope and intercept of each finding"
    v,p = run['valid_preds'],run['preds']
    found = fit_finding_scaling(np.log(v/(1-v)), run['valid_targs'], 'logistic')
    return 1/(1+np.exp(-np.log(p/(1-p))*found['scale'].numpy()-found['bias'].numpy()))

def test_networks_of_findings_are_compared_once_scaled(plain_and_sure, tmp_path):
    "One that ranks better and is too sure is the best, once it has a temperature"
    runs,y = plain_and_sure
    bce = {k: log_loss(y.ravel(), o['preds'].ravel()) for k,o in runs.items()}
    assert bce['plain']<bce['sure']
    text = calibration_report(runs, tmp_path/'r.html', n=5).read_text()
    q = scaled(runs['sure'])
    loss = log_loss(y.ravel(), q.ravel())
    best = f'each with a slope and an intercept for each finding, sure: {loss:.3f}, better beyond chance than plain'
    assert f'By the mean NLL of the findings, which should be small, {best}' in words(text)
    assert f"As trained, plain: {bce['plain']:.3f}, better beyond chance than sure (by " in words(text)
    assert 'sure: the 3 of 3' in words(text)  # pictures are of the best
    after = 'With a slope and an intercept for each, fitted to 600 validation images: none is shown'
    assert re.search(f'sure: macro AUROC .*? {after}', words(text))
    t = cells(text, 'Before and after scaling')['NLL, change']
    assert t['sure, slope and intercept'].startswith(f"{loss-bce['sure']:+.3f} (") and t['sure, as trained']=='–'
    assert t['sure, slope and intercept'].endswith(' *')

def test_each_finding_is_judged_once_scaled_and_by_group(plain_and_sure, tmp_path):
    runs,y = plain_and_sure
    text = calibration_report(runs, tmp_path/'r.html', by=['view'], n=5).read_text()
    q = scaled(runs['sure'])
    def interval(t, row, name):
        return '{:.2f} ({:.2f} to {:.2f})'.format(*t.loc[row, [name,f'{name}_low',f'{name}_high']])
    patient,vocab = np.arange(600)//6,runs['sure']['vocab']
    t = class_table(q, y, vocab, groups=patient)
    found = cells(text, 'sure: each finding before and after scaling').loc['nodule']
    for name in ('slope','O/E'): assert found[f'{name}, slope and intercept']==interval(t, 'nodule', name)
    of = np.arange(600)%3==0
    t = class_table(runs['sure']['preds'][of], y[of], vocab, groups=patient[of])
    for name,caption in (('AUROC','AUROC of each'),('O/E','images with a finding over')):
        assert cells(text, f'sure, by view: {caption}').loc['hernia','PA (200)']==interval(t, 'hernia', name)
    areas = [roc_auc_score(y[:,0], runs[k]['preds'][:,0]) for k in ('sure','plain')]
    both = cells(text, 'sure minus plain, with slope and intercept of each').loc['mass','AUROC']
    assert both.startswith(f'{areas[0]-areas[1]:+.3f} (')

def test_a_threshold_that_finds_less_here_is_marked(tmp_path):
    "Nine of ten on the validation images; here half of many, beyond chance"
    y = torch.zeros(400, 1).long()
    y[:100] = 1
    valid,here = torch.full((400,1), .1),torch.full((400,1), .1)
    valid[:100] = torch.linspace(.9, .5, 100)[:,None]
    here[:50] = .9
    def sensitivity(preds):
        run = dict(preds=preds, targs=y, valid_preds=valid, valid_targs=y, vocab=['mass'])
        text = calibration_report({'net': run}, tmp_path/'r.html', n=5).read_text()
        return cells(text, 'net, as trained: the highest threshold').loc['mass, 90 %','sensitivity %']
    assert re.fullmatch(r'50 \(.*\) \*', sensitivity(here))
    assert re.fullmatch(r'90 \([^*]*\)', sensitivity(valid))

def test_a_slope_that_is_off_is_off_beyond_chance(tmp_path):
    "Twice as extreme as they should be"
    g = torch.Generator().manual_seed(0)
    z = torch.randn(3000, 1, generator=g)
    y = (torch.rand(3000, 1, generator=g)<(.6*z-3).sigmoid()).long()
    p = (1.2*z-3.3).sigmoid()
    text = calibration_report({'net': dict(preds=p, targs=y, vocab=['rare'])}, tmp_path/'r.html', n=5).read_text()
    t = class_table(p, y, ['rare']).loc['rare']
    z_slope = (1-t.slope)/((t.slope_high-t.slope_low)/2/1.959964)
    said = cells(text, 'net, as trained: tests').loc['rare']
    assert said['slope'].startswith(f'{z_slope:+.1f} (p ') and z_slope>3
    assert '1 of 1 are off beyond chance: rare' in text

def test_patients_who_were_seen_before_are_said(tmp_path):
    p = torch.rand(60, 2)
    run = {'a': dict(preds=p, targs=(p>.5).long(), valid_preds=p, valid_targs=(p>.5).long())}
    def text(**data): return calibration_report(run, tmp_path/'r.html', n=5, data=data).read_text()
    assert 'on images of the same patients is not known to this page' in text()
    shared = {'patients in more than one split': 3}
    assert '3 patients are in more than one split: every figure here flatters.' in text(**shared)
    shared['patients in more than one split'] = 0
    assert 'flatters' not in text(**shared)

def test_a_finding_of_few_images_has_no_interval_in_the_differences(tmp_path):
    rng = np.random.default_rng(0)
    y = np.zeros((200,2), int)
    y[:5,0],y[:50,1] = 1,1
    runs = {k: dict(preds=(.2+.5*y+.3*rng.random(y.shape)).clip(0, 1), targs=y, vocab=['hernia','mass']) for k in 'ab'}
    text = calibration_report(runs, tmp_path/'r.html', n=5).read_text()
    t = cells(text, 'b minus a, as trained')
    assert not any('(' in o for o in t.loc['hernia']) and all('(' in o for o in t.loc['mass'])

def test_an_intercept_is_held_near_nothing_where_images_are_few():
    "All of 4 images have the finding, and their logits say nothing: 4(1-p) pulls at the intercept, its prior holds it"
    from scipy.optimize import brentq
    bias = fit_finding_scaling(torch.zeros(4, 1), torch.ones(4, 1).long(), 'logistic')['bias'].item()
    assert bias==pytest.approx(brentq(lambda b: 4/(1+np.exp(b))-b, 0, 4), abs=1e-4)

def test_a_false_alarm_is_shared_where_all_networks_are_sure_of_it(tmp_path):
    "Of 90 % and more in each; to be sure that a finding is not there is no wonder"
    y = torch.zeros(40, 2).long()
    y[:10,0] = 1; y[5:20,1] = 1
    sure,less = torch.full((40,2), .1),torch.full((40,2), .1)
    sure[30],less[30] = torch.tensor([.95,.1]),torch.tensor([.92,.2])
    sure[31],less[31] = torch.tensor([.95,.1]),torch.tensor([.8,.1])
    nets = {k: dict(preds=p, targs=y, vocab=['nodule','mass']) for k,p in (('a',sure),('b',less))}
    text = words(calibration_report(nets, tmp_path/'a.html', n=5).read_text())
    said = 'with a probability of 90 % and more, that is not in the labels in 1 of 40 images, the surest first: row 30.'
    assert said in text.replace('\N{NO-BREAK SPACE}', ' ')
