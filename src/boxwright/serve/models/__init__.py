"""The models that run in Triton's python backend, and the body of the DALI pipeline.

Each file becomes `model.py` of a served model, beside verbatim copies of the modules of
`boxwright` that it needs (`boxwright.serve.python_models`). They need NumPy below 2 and OpenCV,
nothing else; the server's own module is imported where it is used, so that they import anywhere.
"""
