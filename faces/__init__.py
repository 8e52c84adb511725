"""Faces in photos: found, cut out as FER2013's were, and shown with their answers."""
