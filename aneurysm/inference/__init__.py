"""Model, volume -> Prediction: sliding windows, candidates, and DICOM series straight to an answer."""
