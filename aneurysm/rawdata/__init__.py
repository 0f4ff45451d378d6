"""What a data folder or bucket holds: series of DICOM files, tables of labels and lesions, vessel masks."""
