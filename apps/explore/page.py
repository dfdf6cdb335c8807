"""The script that Streamlit runs for every look and every click; `layout` holds what it shows."""

from explore import layout

layout.show()
