"""Data sets of TFDS in tfrecord format, the files written by TensorFlow."""

from pathlib import Path


def write_as_tfrecord(source: Path, target: Path) -> Path:
    """Write a prepared data set in array_record format anew in tfrecord format, record for record."""
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordReader

    target.mkdir(parents=True)
    for path in source.iterdir():
        if "array_record" not in path.name:
            (target / path.name).write_bytes(path.read_bytes())
            continue
        reader = ArrayRecordReader(str(path))
        with tf.io.TFRecordWriter(str(target / path.name.replace("array_record", "tfrecord"))) as writer:
            for row in range(reader.num_records()):
                writer.write(reader.read([row])[0])
    info = target / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return target
