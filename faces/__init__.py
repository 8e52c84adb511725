"""Faces in photos: found, and cut out as FER2013's were."""
