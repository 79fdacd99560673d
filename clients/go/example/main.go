// Command example generates a picture with a line of progress:
// example 127.0.0.1:50051 "a red circle" out.png
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"google.golang.org/grpc"

	ditcast "github.com/ditcast/ditcast/clients/go"
	pb "github.com/ditcast/ditcast/clients/go/ditcastv1"
)

// show shows a computed step as a block, one that the cache spared as a dot.
func show(event *pb.GenerationEvent) {
	switch kind := event.Kind.(type) {
	case *pb.GenerationEvent_StepCompleted:
		mark := "·"
		if kind.StepCompleted.CacheDecision == pb.CacheDecision_CACHE_DECISION_COMPUTED {
			mark = "█"
		}
		fmt.Fprint(os.Stderr, mark)
	case *pb.GenerationEvent_Restarted:
		fmt.Fprintf(os.Stderr, "\nbegins again: %s\n", kind.Restarted.Reason)
	case *pb.GenerationEvent_Completed:
		fmt.Fprintln(os.Stderr)
	}
}

func run(address, prompt, file string) error {
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer connection.Close()
	seed := uint64(42)
	generation := ditcast.New(connection).Generate(&pb.GenerateRequest{Prompt: prompt, Seed: &seed})

	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	go func() {
		<-interrupts
		generation.Cancel(context.Background())
	}()
	result, err := generation.Result(context.Background(), show)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s, seed %d, %d steps cached\n", file, result.Outputs[0].MediaType,
		result.Completed.GetReceipt().GetParameters().GetSeed(), len(result.Completed.GetCache().GetCachedSteps()))
	return os.WriteFile(file, result.Outputs[0].Data, 0o644)
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: example ADDRESS PROMPT FILE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		var refused *ditcast.Error
		if errors.As(err, &refused) {
			for _, each := range refused.FieldViolations {
				fmt.Fprintf(os.Stderr, "  %s: %s\n", each.Field, each.Description)
			}
		}
		os.Exit(1)
	}
}
