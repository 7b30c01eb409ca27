"""The web site as a reader meets it.

Built, served on loopback, and every page opened in Chromium, as wide as a phone and as a desk."""
import json, re, shutil, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from urllib.parse import urldefrag
import pytest

root = Path(__file__).parent.parent
widths = dict(phone=390, desk=1280)
needs = ("the site's tests need a browser and the packages of the extra `docs`: "
         "apt-get install chromium chromium-driver; pip install -e '.[docs]'")

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')
    r = subprocess.run([sys.executable, root/'docs/build.py', out], cwd=root, capture_output=True, text=True)
    if 'ModuleNotFoundError' in r.stderr: pytest.fail(f"{r.stderr.splitlines()[-1]}: {needs}", pytrace=False)
    assert r.returncode==0, f"the site is not built:\n{r.stdout}\n{r.stderr}"
    return out

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def address(site):
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()

arguments = ('headless','no-sandbox','disable-gpu','disable-quic','no-first-run','disable-background-networking',
             'disable-component-update','disable-sync','disable-dev-shm-usage','hide-scrollbars')

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    try: from selenium import webdriver
    except ImportError: pytest.fail(needs, pytrace=False)
    chromium = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)
    driver = shutil.which('chromedriver')
    if not (chromium and driver): pytest.fail(needs, pytrace=False)
    o = webdriver.ChromeOptions()
    o.binary_location = chromium
    profile = f"user-data-dir={tmp_path_factory.mktemp('chromium')}"
    for arg in (*arguments, profile): o.add_argument(f'--{arg}')
    o.set_capability('goog:loggingPrefs', {'browser':'ALL'})
    b = webdriver.Chrome(options=o, service=webdriver.ChromeService(driver))
    b.set_page_load_timeout(30)
    yield b
    b.quit()

def as_wide_as(browser, device):
    screen = dict(width=widths[device], height=900, deviceScaleFactor=1, mobile=device=='phone')
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)

def html_pages(site): return sorted(str(o.relative_to(site)) for o in site.rglob('*.html') if '_static' not in o.parts)

def notebooks():
    found = sorted((root/'nbs').rglob('*.ipynb'))
    return [o for o in found if '.ipynb_checkpoints' not in o.parts and o.stem!='index']

def page_of(module):
    "Of the notebook that a module is made of, whatever its number"
    fn, = (root/'nbs').glob(f'[0-9][0-9]_{module}.ipynb')
    return f'nbs/{fn.stem}.html'

def cells(fn): return json.loads(fn.read_text())['cells']

look = """
return {links: [...document.links].map(o => o.href), ids: [...document.querySelectorAll('[id]')].map(o => o.id),
        images: [...document.images].map(o => [o.src, o.complete && o.naturalWidth>0]),
        asked: performance.getEntriesByType('resource').map(o => o.name)}"""
wide = """
const w = arguments[0], all = [...document.querySelectorAll('article *')]
const scrolls = o => {
    for (; o && o.tagName!='ARTICLE'; o = o.parentElement) if (getComputedStyle(o).overflowX!='visible') return true
    return false
}
const box = o => document.querySelector(o).getBoundingClientRect(), side = box('.sidebar-drawer'), text = box('article')
return {width: document.documentElement.scrollWidth, covered: side.right>text.left,
        over: all.filter(o => o.getBoundingClientRect().right>w+1 && !scrolls(o))
                 .map(o => `${o.tagName}.${o.className}: ${o.textContent.slice(0,60)}`)}"""

@pytest.fixture(scope='module')
def seen(site, address, browser):
    "What the browser finds on each page"
    from selenium.webdriver.support.ui import WebDriverWait
    res = {}
    for page in html_pages(site):
        as_wide_as(browser, 'desk')
        browser.get(address+page)
        # on a machine that is busy `get` has come back before the page was whole
        WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.readyState")=='complete')
        res[page] = browser.execute_script(look)
        for device,w in widths.items():
            as_wide_as(browser, device)
            res[page][device] = browser.execute_script(wide, w)
        res[page]['console'] = [o['message'] for o in browser.get_log('browser') if o['level']!='DEBUG']
    return res

def test_every_notebook_and_project_page_is_there(site):
    want = {str(o.relative_to(root).with_suffix('.html')) for o in notebooks()}
    want |= {'index.html','CONTRIBUTING.html','CHANGELOG.html','search.html'}
    assert not want-set(html_pages(site))

def test_the_sidebar_has_howtos_studies_with_results_first_the_package_and_its_reference(site):
    text = (site/'index.html').read_text()
    captions = re.findall(r'<p class="caption"[^>]*><span class="caption-text">(.*?)</span>', text)
    assert captions==['How-tos','Studies','The package, part by part','Reference','Project']
    links = [re.findall(r'href="([^"#]+)"', part) for part in text.split('class="caption"')[1:]]
    howtos,studies,parts,reference,_ = links
    def pages(found, pattern): return [o for o in found if re.search(pattern, o)]
    assert pages(studies, 'nbs/studies/')[0]=='nbs/studies/results.html'
    assert pages(howtos, 'nbs/tutorials/')[0]=='nbs/tutorials/ten_minutes.html'
    numbered = pages(parts, r'nbs/\d')
    assert numbered==sorted(numbered) and 'core' in numbered[0] and pages(reference, 'reference/core.html')
    folders = [o.split('_')[1].split('.')[0] for o in numbered]
    order = list(dict.fromkeys(folders))
    assert order==['core','data','train','calibration','compare','all'] and folders==sorted(folders, key=order.index)

def test_no_broken_link(seen, address):
    ids,broken = {k: set(v['ids']) for k,v in seen.items()},[]
    for page,v in seen.items():
        for o in v['links']:
            if not o.startswith(address): continue
            to,anchor = urldefrag(o[len(address):].split('?')[0] if '#' not in o else o[len(address):])
            to = to or 'index.html'
            if to not in ids or anchor and anchor not in ids[to]: broken.append(f'{page} -> {to}#{anchor}')
    assert sum(len(v['links']) for v in seen.values())>500 and not broken

def test_no_picture_is_missing(seen):
    assert not [f'{page}: {src}' for page,v in seen.items() for src,ok in v['images'] if not ok]
    for fn in notebooks():
        shown = [c for c in cells(fn) if not re.search(r'^#\|\s*hide\b', ''.join(c['source']), re.M)]
        n = sum('image/png' in out.get('data', {}) for c in shown for out in c.get('outputs', []))
        assert len(seen[str(fn.relative_to(root).with_suffix('.html'))]['images'])>=n, f"{fn} has {n} pictures"
    assert seen['index.html']['images']

def test_no_console_message_and_nothing_from_elsewhere(seen, address):
    assert not {page: v['console'] for page,v in seen.items() if v['console']}
    elsewhere = {page: [a for a in v['asked'] if not a.startswith((address,'data:'))] for page,v in seen.items()}
    assert not {page: asked for page,asked in elsewhere.items() if asked}

@pytest.mark.parametrize('device', widths)
def test_nothing_is_wider_than_the_page(seen, device):
    def is_wide(found): return found['over'] or found['covered'] or found['width']>widths[device]
    assert not {page: v[device] for page,v in seen.items() if is_wide(v[device])}

def test_reference_has_every_public_name_and_its_docments(site, seen):
    for fn in (root/'ols_fastai').rglob('[!_]*.py'):
        mod = '.'.join(fn.relative_to(root/'ols_fastai').with_suffix('').parts)
        if mod=='all': continue
        names = import_module(f'ols_fastai.{mod}').__all__
        assert not {f'ols_fastai.{mod}.{o}' for o in names}-set(seen[f'reference/{mod}.html']['ids'])
    text = re.sub(r'<[^>]+>|\s+', ' ', (site/'reference/train.ols.html').read_text())
    assert "Epochs in which soft labels are learnt but only the learner’s own loss is trained on" in text
    assert "Keep the largest so many entries of a row" in text, "what comes by @delegates is not there"

def test_notebook_links_names_to_the_reference_and_hides_what_nbdev_hides(site, seen, address):
    page = page_of('train.ols')
    assert address+'reference/train.soft_labels.html#ols_fastai.train.soft_labels.SoftLabels' in seen[page]['links']
    text = (site/page).read_text()
    assert '#| ' not in re.sub(r'<[^>]+>', '', text) and 'nbdev_export' not in text

def has_mathematics(fn):
    prose = [''.join(c['source']) for c in cells(fn) if c['cell_type']=='markdown']
    return any('$' in re.sub(r'`[^`]*`', '', o) for o in prose)

def test_mathematics_is_drawn_without_scripts(site):
    with_math = [o for o in notebooks() if has_mathematics(o)]
    assert with_math
    for fn in with_math: assert '<math' in (site/fn.relative_to(root).with_suffix('.html')).read_text(), fn

def test_search_finds_prose_and_names(browser, address):
    from selenium.webdriver.support.ui import WebDriverWait
    found = "return /found|match/i.test(document.querySelector('#search-results p, .search-summary')?.textContent)"
    as_wide_as(browser, 'phone')
    for word,page in (('temperature',page_of('calibration.scaling')),('OLSCallback','reference/train.ols.html')):
        browser.get(f'{address}search.html?q={word}')
        WebDriverWait(browser, 15).until(lambda b: b.execute_script(found))
        links = browser.execute_script("return [...document.querySelectorAll('#search-results a')].map(o => o.href)")
        assert any(page in o for o in links), f'{word}: {links}'

def test_dark_mode(browser, address):
    colour = lambda: browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    def prefer(o):
        feature = dict(name='prefers-color-scheme', value=o)
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[feature]))
    as_wide_as(browser, 'desk')
    browser.get(address)
    prefer('light')
    light = colour()
    prefer('dark')
    dark = colour()
    assert light!=dark
    for _ in range(3):  # a press goes from what the system says to light, to dark
        browser.execute_script("[...document.querySelectorAll('.theme-toggle')].find(o => o.offsetParent).click()")
        if browser.execute_script("return document.body.dataset.theme")=='light': break
    assert colour()==light
