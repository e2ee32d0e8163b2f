"""tus 1.0.0 on `/files`: the wire, the bytes, the offsets. Who may upload, and what it means, others decide."""
