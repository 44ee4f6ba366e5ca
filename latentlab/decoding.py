"""Pixels of image files as TensorFlow decodes them.

`tf.image.decode_image` decodes JPEGs with libjpeg's fast integer cosine transform, Pillow with the accurate one. Their
pixels differ by about 1 grey level on average and by 20 and more at most, which moves the results of attacks.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
BYTE = 8


def decode_as_tensorflow(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of `tf.image.decode_image(content, channels=3, expand_animations=False)`, to the bit.

    Transparency is dropped, EXIF's orientation is not applied, 16 bits lose the lower half, and of several frames the
    first is taken. Keras's `load_img` does the same but for the cosine transform of JPEGs.

    Raises:
        ValueError: The content is damaged, or of a kind that TensorFlow does not decode or misreads.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.format in ("JPEG", "MPO"):
            return _decode_jpeg(content, image)
        if image.format == "WEBP" and (image.mode != "RGB" or getattr(image, "n_frames", 1) > 1):
            raise ValueError("TensorFlow decodes no WebP that is transparent or moves")
        if image.format == "BMP" and image.mode == "P":
            raise ValueError("TensorFlow takes the palette's indices of a BMP for grey levels")
        if image.mode.startswith("I"):
            levels = (np.asarray(image) >> BYTE).astype(np.uint8)
            return np.repeat(levels[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def _decode_jpeg(content: bytes, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    import simplejpeg

    if image.mode != "CMYK":
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", fastdct=True, fastupsample=False)
        return pixels
    # Adobe's marker says that the inks are stored inverted.
    inks = simplejpeg.decode_jpeg(content, "CMYK", fastdct=True, fastupsample=False).astype(np.int32)
    inks = inks if "adobe" in image.info else 255 - inks
    return (inks[..., :3] * inks[..., 3:] // 255).astype(np.uint8)
