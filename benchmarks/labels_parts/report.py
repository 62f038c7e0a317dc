def page(found, stamp):
    return ""
