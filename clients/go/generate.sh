#!/bin/sh
# Makes ditcastv1/ of the contract, with protoc, protoc-gen-go and protoc-gen-go-grpc.
set -eu
cd "$(dirname "$0")"
package='github.com/ditcast/ditcast/clients/go/ditcastv1'
options=''
for file in ../../proto/ditcast/v1/*.proto; do
	name="ditcast/v1/$(basename "$file")"
	options="$options --go_opt=M$name=$package --go-grpc_opt=M$name=$package"
done
# shellcheck disable=SC2086 # One word for each option.
protoc -I../../proto --go_out=ditcastv1 --go_opt=module="$package" \
	--go-grpc_out=ditcastv1 --go-grpc_opt=module="$package" $options ../../proto/ditcast/v1/*.proto
