/* The nine symbols that the Python binding of TensorRT 11.4 takes from TensorRT's libraries. With them it imports on
   any machine, with every class and signature, and can build or run nothing. */

void *createInferBuilder_INTERNAL(void) { return 0; }
void *createInferRefitter_INTERNAL(void) { return 0; }
void *createInferRuntime_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void) { return 0; }
void *getBuilderPluginRegistry(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
void *initLibNvInferPlugins(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
