// Libraries may lie beside newer Python (a source tree updated but not rebuilt): this number is checked before anything is called.
extern "C" int hasten_interface() { return 8; }  // raise it here and in native.py whenever a packed struct changes
