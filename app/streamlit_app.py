"""The frame of the explorer: which pages there are, and what stands beside every one of them.

    saelab explore runs                              # the usual way
    streamlit run app/streamlit_app.py -- runs       # from a checkout

A page is a file in views/; what pages share is in explorer/. Every view is an address: what a
page shows is in its query parameters, so copying the address shares the view.
"""

from pathlib import Path

import streamlit as st
from explorer import frame, style
from explorer.pages import PAGES

icon = str(Path(__file__).parent / "favicon.png")  # an icon by name would be fetched from afar
st.set_page_config(page_title="saelab explorer", page_icon=icon, layout="wide")
style.inject()
page = st.navigation(list(PAGES.values()), position="hidden")
frame.sidebar()
frame.guarded(page.run)
