"Damaged image files: an error that names the file, or the right picture, never half of it."
import cv2, numpy as np, pytest
from hypothesis import given, settings, strategies as st
from ols_fastai.images import read_image

def encoded(ext, depth=np.uint8, shape=(24,20), args=()):
    a = np.random.default_rng(0).integers(0, np.iinfo(depth).max+1, shape, dtype=depth)
    return cv2.imencode(ext, a, args)[1].tobytes()

files = {'png': encoded('.png'), 'png16': encoded('.png', np.uint16), 'colour': encoded('.png', shape=(24,20,3)), 'jpg': encoded('.jpg'),
         'progressive': encoded('.jpg', shape=(24,20,3), args=(cv2.IMWRITE_JPEG_PROGRESSIVE,1)), 'bmp': encoded('.bmp'), 'tiff': encoded('.tiff'), 'tiff16': encoded('.tiff', np.uint16)}

@pytest.mark.parametrize('kind', files)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(share=st.floats(0, .999))
def test_cut_file(kind, share, tmp_path_factory):
    fn,whole = tmp_path_factory.getbasetemp()/f'{kind}.img',files[kind]
    fn.write_bytes(whole)
    want = read_image(fn)
    fn.write_bytes(whole[:int(len(whole)*share)])
    try: got = read_image(fn)
    except ValueError as e: assert str(fn) in str(e)
    else: assert (got==want).all()

def test_thumbnail_is_not_the_end(tmp_path):
    "The preview in a JPEG's header has an end marker of its own"
    whole,fn = files['jpg'],tmp_path/'a.jpg'
    thumb = b'\xff\xe1'+(len(whole)+2).to_bytes(2, 'big')+whole
    both = whole[:2]+thumb+whole[2:]
    fn.write_bytes(both); read_image(fn)
    fn.write_bytes(both[:-40])
    with pytest.raises(ValueError, match='ends before'): read_image(fn)
