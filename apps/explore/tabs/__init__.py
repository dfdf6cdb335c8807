"""The explorer's pages: layout alone. What they show is computed in `dino_core`.

Not called `pages`: Streamlit would serve each file of such a folder as a page of its own.
"""
